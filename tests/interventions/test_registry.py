import pytest

from tests.conftest import TEXTS, bits, same_bits
from toxloc import Budget, ContrastSet, NeutralText, ToxlocError
from toxloc.evaluation.cost.fluency import measure_fluency
from toxloc.interventions.base import KINDS
from toxloc.interventions.registry import METHODS, PAPERS, check_method, fit_method

PAIRS = ContrastSet(TEXTS[:2], TEXTS[2:4], "some pairs", paired=True)
NEUTRAL = NeutralText(TEXTS[:1], TEXTS[3:], TEXTS[2:3], "some text")


@pytest.mark.parametrize("name", ["trne", "meow2x"])
def test_a_fit_by_name_notes_its_texts_and_its_cost(tiny, name):
    before = bits(tiny)
    fitted = fit_method(name, tiny, PAIRS, NEUTRAL, Budget(perplexity=0.5, kl=1.0))
    assert same_bits(before, tiny)
    assert isinstance(fitted, METHODS[name])
    assert fitted.record["budget"] == {"perplexity": 0.5, "kl": 1.0}
    assert fitted.record["texts"] == {"contrast": "some pairs", "n_toxic": 2, "n_neutral": 2, "neutral": "some text"}
    with fitted.applied(tiny):
        cost = measure_fluency(tiny, NEUTRAL.check)
    assert (fitted.record["check_perplexity_ratio"], fitted.record["check_kl"]) == (cost.perplexity_ratio, cost.kl)
    assert cost.kl > 0


@pytest.mark.parametrize("name", METHODS)
def test_every_fit_notes_the_texts_it_saw(tiny, name):
    fitted = METHODS[name].fit(tiny, PAIRS, neutral=NEUTRAL)
    seen = fitted.record["texts"]
    assert (seen["contrast"], seen["n_toxic"], seen["n_neutral"]) == ("some pairs", 2, 2)
    assert seen.get("neutral", "some text") == "some text"


def test_names_are_kinds_and_what_can_be_exported_has_a_paper():
    assert all(KINDS[name] is method for name, method in METHODS.items())
    assert not [name for name in METHODS if KINDS[name].bakeable and "arXiv" not in PAPERS.get(name, "")]


def test_an_unknown_method():
    with pytest.raises(ToxlocError, match="Unknown method 'meow'; choose one of trne, meow2x"):
        check_method("meow")
