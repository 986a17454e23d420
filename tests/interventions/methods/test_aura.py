import numpy as np
import pytest
import torch

from tests.conftest import TEXTS, bits, random_model, same_bits
from tests.interventions.test_unit_scaling import logits
from toxloc import ContrastSet, NeutralText, ToxlocError, load_intervention
from toxloc.evaluation.cost.perplexity import mean_nll
from toxloc.interventions.budget import Budget
from toxloc.interventions.methods.aura import AurA
from toxloc.localization.unit_aurocs import unit_aurocs

PAIRS = ContrastSet(TEXTS[:2], TEXTS[2:])
NEUTRAL = NeutralText(TEXTS[:1], TEXTS[2:], TEXTS[1:2])


def test_factors_are_those_of_the_paper(tiny):
    aurocs = np.concatenate([*unit_aurocs(tiny, PAIRS).values()])
    aura = AurA.fit(tiny, PAIRS, strength=1)
    for factor, auroc in zip(aura.factors.flatten().tolist(), aurocs, strict=True):
        assert factor == pytest.approx(1 - 2 * (auroc - 0.5) if auroc > 0.5 else 1)
    assert {0.0, 1.0} <= set(aura.factors.flatten().tolist())  # perfect detectors are removed, other units unchanged
    assert aura.record == {
        "n_units": int((aurocs > 0.5).sum()),
        "best_auroc": 1.0,
        "texts": {"contrast": "custom", "n_toxic": 2, "n_neutral": 3},
    }
    assert aura.fitted_on == {"name": "random-gpt2", "fingerprint": tiny.fingerprint}


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "phi3", "opt"])
def test_fitted_hooks_equal_fitted_weights_on_both_trees(family):
    lm = random_model(family)
    before = bits(lm)
    aura = AurA.fit(lm, PAIRS, strength=1)
    assert same_bits(before, lm)
    with aura.applied(lm):
        hooks = logits(lm)
    with AurA.fit(lm, PAIRS, strength=1, mode="weights").applied(lm):
        weights = logits(lm)
    for other in (hooks[1], *weights):
        torch.testing.assert_close(hooks[0], other, rtol=1e-4, atol=1e-4)
    assert (hooks[0] - logits(lm)[0]).abs().max() > 1e-2


def test_a_budget_sets_the_strength_of_the_same_factors(tiny):
    whole = AurA.fit(tiny, PAIRS, strength=1)
    aura = AurA.fit(tiny, PAIRS, budget=Budget(kl=0.005), neutral=NEUTRAL)
    strength = aura.config()["strength"]
    assert 0 < strength < 1
    assert aura.record["strength"] == strength
    assert 0.0045 <= aura.record["tuned_kl"] <= 0.005
    torch.testing.assert_close(1 - aura.factors, strength * (1 - whole.factors))


def test_on_a_real_model_it_makes_toxic_text_less_likely_than_neutral_within_its_budget(lm, pairs, neutral):
    fitted_on, held_out = pairs.split(0.5)
    before = bits(lm)
    aura = AurA.fit(lm, fitted_on, budget=Budget(kl=0.005), neutral=neutral)
    assert same_bits(before, lm)
    assert 0.6 < aura.record["best_auroc"] < 1

    def contrast():
        return mean_nll(lm, held_out.toxic) - mean_nll(lm, held_out.neutral)

    was, perplexity = contrast(), mean_nll(lm, neutral.tune)
    with aura.applied(lm):
        assert contrast() > was
        rise = np.exp(mean_nll(lm, neutral.tune) - perplexity)
    assert aura.record["tuned_perplexity_ratio"] == pytest.approx(rise, rel=1e-5)
    assert aura.record["tuned_kl"] <= 0.005


def test_save_and_load(tiny, tmp_path):
    aura = AurA.fit(tiny, PAIRS, strength=1, mode="weights")
    aura.save(tmp_path / "a")
    again = load_intervention(tmp_path / "a")
    assert type(again) is AurA
    assert again.describe() == aura.describe()
    assert again.config() == {"strength": 1.0, "mode": "weights"}
    with aura.applied(tiny):
        expected = logits(tiny)
    with again.applied(tiny):
        torch.testing.assert_close(logits(tiny), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("pairs", "arguments", "words"),
    [
        (PAIRS, dict(mode="sideways"), "mode='sideways': it must be 'hooks' or 'weights'"),
        (PAIRS, dict(budget=-1), "not -1"),
        (PAIRS, dict(budget=None), r"budget=None is not a budget.*give strength="),
        (PAIRS, dict(strength=1.5), r"strength=1\.5"),
    ],
)
def test_bad_arguments(tiny, pairs, arguments, words):
    with pytest.raises(ToxlocError, match=words):
        AurA.fit(tiny, pairs, **arguments)
