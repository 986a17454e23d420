import pytest

import toxloc
from toxloc import ToxlocError
from toxloc.cli.suppress import SuppressSettings
from toxloc.interventions.budget import Budget

from .conftest import FEW, invoke, plain


@pytest.mark.parametrize(
    "word",
    [
        "--method",
        "--kl-budget",
        "--max-neutral",
        "--seed",
        "toxloc export",
        "--set",
        "nats per token; default: no limit",
        "0.01 is 1%; default: 0.01, or no limit",
    ],
)
def test_help(word):
    assert word in plain(invoke("suppress", "--help", columns=250).output)


def test_suppress_saves_the_change_and_says_where_it_is_and_what_it_costs(suppressed):
    out, text = suppressed
    fitted = toxloc.load_intervention(out)
    assert "Changes: layers 0 to 7" in text
    assert str(out) in text.replace(" ", "")
    assert fitted.record["budget"] == {"perplexity": 0.05, "kl": 0.2}
    assert fitted.record["texts"] == {"contrast": "builtin", "n_toxic": 20, "n_neutral": 20, "neutral": "builtin"}
    for part in ("tuned", "check"):
        assert f"{fitted.record[f'{part}_perplexity_ratio'] - 1:+.2%}" in text
        assert f"{fitted.record[f'{part}_kl']:.3g}" in text


def test_any_setting_of_the_method_can_be_given(tmp_path):
    out = tmp_path / "steering"
    result = invoke(
        "suppress",
        "toxloc-tiny",
        "--out",
        out,
        "--method",
        "steering",
        "--set",
        "layer=2",
        "--set",
        "strength=0.5",
        *FEW,
    )
    assert result.exit_code == 0, result.output
    fitted = toxloc.load_intervention(out)
    assert (fitted.kind, fitted.layer, fitted.strength) == ("steering", 2, 0.5)
    assert "not measured" in result.output  # a fixed strength is not tuned


def test_the_options_become_the_methods_settings():
    def of(**options):
        return SuppressSettings.of(model="m", **options).of_method()

    assert of().budget == Budget(perplexity=0.01)
    assert of(budget=0.05).budget == Budget(perplexity=0.05)
    assert of(kl_budget=0.2).budget == Budget(kl=0.2)
    assert of(budget=0.05, kl_budget=0.2).budget == Budget(perplexity=0.05, kl=0.2)
    assert of(seed=3).seed == 3
    given = of(options=("ridge=auto", "shrink=true", "layers=[3, 4]", "rounds = 2"))
    assert (given.ridge, given.shrink, [site.layer for site in given.layers], given.rounds) == ("auto", True, [3, 4], 2)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("ridge", "--set ridge: .*NAME=VALUE"),
        ("layers=[3", r"--set layers=\[3: .*\[3, 4\]"),
        ("rounds=0", r"trne: rounds=0: .*\b1\."),
        ("colour=red", "trne .*'colour'.* budget, seed"),
    ],
)
def test_a_wrong_setting_of_the_method_is_named(option, words):
    with pytest.raises(ToxlocError, match=words):
        SuppressSettings.of(model="m", options=(option,))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["./nowhere"], "There is no model folder at './nowhere'"),
        (["toxloc-tiny", "--contrast", "none.csv"], "There is no file none.csv"),
        (["toxloc-tiny", "--device", "cuda:42"], "torch sees"),
    ],
)
def test_a_users_error_writes_nothing(tmp_path, monkeypatch, refused, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert words in refused("suppress", *arguments, "--out", "out")
    assert list(tmp_path.iterdir()) == []
