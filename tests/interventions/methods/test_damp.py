import numpy as np
import pytest
import torch

from tests.conftest import TEXTS, bits, random_model, same_bits
from tests.interventions.test_unit_scaling import logits
from toxloc import ContrastSet, NeutralText, ToxlocError, load_intervention
from toxloc.evaluation.cost.perplexity import mean_nll
from toxloc.interventions.budget import Budget
from toxloc.interventions.methods.damp import Damp
from toxloc.localization.unit_aurocs import unit_aurocs

PAIRS = ContrastSet(TEXTS[:2], TEXTS[2:])
NEUTRAL = NeutralText(TEXTS[:1], TEXTS[2:], TEXTS[1:2])


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_the_best_k_units_of_the_whole_model_are_scaled(tiny, scale):
    aurocs = np.stack([*unit_aurocs(tiny, PAIRS).values()])
    damp = Damp.fit(tiny, PAIRS, k=30, scale=scale)
    chosen = damp.factors != 1
    assert chosen.sum() == 30
    assert (damp.factors[chosen] == scale).all()
    assert chosen.any(1).sum() > 1  # of more than one layer
    chosen = chosen.numpy()
    assert aurocs[chosen].min() >= aurocs[~chosen].max()
    assert damp.record["least_auroc"] == aurocs[chosen].min()
    assert damp.config() == {"k": 30, "scale": scale, "mode": "hooks"}


def test_units_that_do_not_detect_toxic_text_are_never_scaled(tiny):
    aurocs = np.stack([*unit_aurocs(tiny, PAIRS).values()])
    over = int((aurocs > 0.5).sum())
    assert over < aurocs.size
    damp = Damp.fit(tiny, PAIRS, k=over)
    np.testing.assert_array_equal((damp.factors == 0).numpy(), aurocs > 0.5)
    with pytest.raises(ToxlocError, match=f"k={over + 1} .* give 1 to {over}"):
        Damp.fit(tiny, PAIRS, k=over + 1)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "phi3", "opt"])
def test_fitted_hooks_equal_fitted_weights_on_both_trees(family):
    lm = random_model(family)
    before = bits(lm)
    damp = Damp.fit(lm, PAIRS, k=25)
    assert same_bits(before, lm)
    with damp.applied(lm):
        hooks = logits(lm)
    with Damp.fit(lm, PAIRS, k=25, mode="weights").applied(lm):
        weights = logits(lm)
    for other in (hooks[1], *weights):
        torch.testing.assert_close(hooks[0], other, rtol=1e-4, atol=1e-4)
    assert (hooks[0] - logits(lm)[0]).abs().max() > 1e-2


def test_a_budget_sets_the_number_of_units(lm, pairs, neutral):
    before = bits(lm)
    damp = Damp.fit(lm, pairs, neutral=neutral)
    assert same_bits(before, lm)
    assert (damp.factors == 0).sum() == damp.config()["k"] > 1
    base = mean_nll(lm, neutral.tune)
    with damp.applied(lm):
        rise = np.expm1(mean_nll(lm, neutral.tune) - base)
    assert rise <= 0.01
    assert damp.record["tuned_perplexity_ratio"] == pytest.approx(1 + rise, rel=1e-6)
    assert damp.record["budget"] == Budget(0.01).to_dict()


def test_one_unit_may_be_over_the_budget(tiny):
    with pytest.raises(ToxlocError, match="No strength"):
        Damp.fit(tiny, PAIRS, budget=Budget(kl=1e-9), neutral=NEUTRAL)


def test_save_and_load(tiny, tmp_path):
    damp = Damp.fit(tiny, PAIRS, k=7, scale=0.5)
    damp.save(tmp_path / "d")
    again = load_intervention(tmp_path / "d")
    assert type(again) is Damp
    assert again.describe() == damp.describe()
    assert torch.equal(again.factors, damp.factors)
    assert type(again.baked()) is Damp


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(k=5, mode="sideways"), "mode='sideways': it must be 'hooks' or 'weights'"),
        (dict(k=5, scale=1.5), r"scale=1\.5"),
        (dict(k=0), "k=0: it must be greater than or equal to 1"),
        (dict(budget=None), "budget=None is not a budget"),
        (dict(budget=-1), "not -1"),
    ],
)
def test_bad_arguments(tiny, arguments, words):
    with pytest.raises(ToxlocError, match=words):
        Damp.fit(tiny, PAIRS, **arguments)
