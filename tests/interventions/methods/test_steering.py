import numpy as np
import pytest
import torch

from tests.conftest import TEXTS, bits, random_model, same_bits
from toxloc import ContrastSet, NeutralText, ToxlocError, load_intervention
from toxloc.evaluation.cost.perplexity import mean_nll
from toxloc.interventions.methods.steering import Steering
from toxloc.models.batching import batches

FAMILIES = ["gpt2", "llama", "gemma2", "phi3", "opt"]
PAIRS = ContrastSet(TEXTS[:2], TEXTS[2:])


def logits(lm):
    batch = next(batches(lm, TEXTS))
    with torch.no_grad():
        hooked = lm.forward(batch.ids, batch.mask)[batch.real]
        plain = lm.hf(input_ids=batch.ids, attention_mask=batch.mask).logits[batch.real]
    return hooked, plain


def after_block(lm, text, layer):
    """Residual stream after a block of the plain model on one text, [n_tokens, d_model]."""
    seen = []
    handle = lm.block(layer).register_forward_hook(
        lambda module, args, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        lm.hf(input_ids=torch.tensor([[0, *lm.tokenizer(text)["input_ids"]]]))
    handle.remove()
    return seen[0].reshape(-1, lm.d_model)


def means(lm, texts, layer):
    """Mean of `after_block` over the tokens except the first, float64 [n_texts, d_model]."""
    return np.stack([after_block(lm, text, layer)[1:].double().mean(0).numpy() for text in texts])


def n_hooks(lm):
    """Number of hooks on both module trees; the bridge of some families has a few hooks without interventions."""
    return sum(len(point.fwd_hooks) for point in lm.hooked.hook_dict.values()) + sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in lm.hf.modules()
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_direction_is_the_difference_of_means_by_hand(family):
    lm = random_model(family)
    steering = Steering.fit(lm, PAIRS, strength=0.5)
    assert (steering.layer, steering.strength) == (1, 0.5)  # the middle of two layers
    expected = means(lm, PAIRS.toxic, 1).mean(0) - means(lm, PAIRS.neutral, 1).mean(0)
    np.testing.assert_allclose(steering.direction, expected, rtol=1e-4, atol=1e-5)
    assert steering.record["direction_norm"] == pytest.approx(np.linalg.norm(expected), rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_subtracted_at_every_position_on_both_trees(family):
    lm = random_model(family)
    v = torch.linspace(-1, 2, lm.d_model)
    before, untouched, hooks = after_block(lm, TEXTS[0], 0), logits(lm)[0], n_hooks(lm)
    with Steering(v, layer=0, strength=1.5).applied(lm):
        torch.testing.assert_close(after_block(lm, TEXTS[0], 0), before - 1.5 * v)
        hooked, plain = logits(lm)
    torch.testing.assert_close(hooked, plain, rtol=1e-4, atol=1e-4)
    assert (hooked - untouched).abs().max() > 1e-2
    assert n_hooks(lm) == hooks


def test_a_strength_of_one_moves_the_mean_of_toxic_texts_to_that_of_neutral_texts(tiny):
    steering = Steering.fit(tiny, PAIRS, layer=0, strength=1)
    assert steering.strength == 1
    neutral = means(tiny, PAIRS.neutral, 0).mean(0)
    with steering.applied(tiny):
        np.testing.assert_allclose(means(tiny, PAIRS.toxic, 0).mean(0), neutral, rtol=1e-4, atol=1e-5)


def test_fit_keeps_the_budget_and_makes_toxic_text_less_likely(lm, pairs, neutral):
    before = bits(lm)
    steering = Steering.fit(lm, pairs, budget=0.02, neutral=neutral)
    assert same_bits(before, lm)
    assert steering.layer == lm.n_layers // 2
    contrast = mean_nll(lm, pairs.toxic) - mean_nll(lm, pairs.neutral)
    base = mean_nll(lm, neutral.tune)
    with steering.applied(lm):
        rise = np.expm1(mean_nll(lm, neutral.tune) - base)
        assert mean_nll(lm, pairs.toxic) - mean_nll(lm, pairs.neutral) > contrast + 0.01
    assert 0.015 <= rise <= 0.02
    assert steering.record["strength"] == steering.strength
    assert steering.record["tuned_perplexity_ratio"] == pytest.approx(1 + rise, rel=1e-6)
    assert steering.fitted_on["fingerprint"] == lm.fingerprint


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_exception_leaves_no_trace(dtype):
    lm = random_model("llama", dtype=dtype)
    before, hooks = bits(lm), n_hooks(lm)
    steering = Steering.fit(lm, PAIRS, strength=1.0)
    assert steering.direction.dtype == torch.float32
    with pytest.raises(KeyboardInterrupt), steering.applied(lm):
        raise KeyboardInterrupt
    assert same_bits(before, lm)
    assert lm.interventions == []
    assert n_hooks(lm) == hooks


def test_save_and_load(tiny, tmp_path):
    steering = Steering.fit(tiny, PAIRS, layer=0, budget=0.5, neutral=NeutralText(TEXTS[:1], TEXTS[2:], TEXTS[:1]))
    steering.save(tmp_path / "s")
    again = load_intervention(tmp_path / "s")
    assert isinstance(again, Steering)
    assert again.describe() == steering.describe()
    with steering.applied(tiny):
        expected = logits(tiny)[0]
    with again.applied(tiny):
        assert torch.equal(logits(tiny)[0], expected)


def test_it_has_no_form_in_the_weights(tiny):
    steering = Steering(torch.ones(16), 0, 1.0)
    assert not steering.in_weights and not steering.bakeable
    with pytest.raises(ToxlocError, match="has no form in the weights"):
        steering.baked()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(layer=2), "no layer 2 in random-gpt2; it has layers 0 to 1"),
        (dict(layer=-1), "layer=-1: it must be greater than or equal to 0"),
        (dict(strength=float("nan")), "strength=nan: it must be a finite number"),
        (dict(budget=-1.0), "not -1.0"),
    ],
)
def test_bad_arguments_of_fit(tiny, arguments, words):
    with pytest.raises(ToxlocError, match=words):
        Steering.fit(tiny, PAIRS, **arguments)


def test_activations_that_are_not_finite(tiny):
    with torch.no_grad():
        tiny.W_out(0)[0, 0] = torch.inf
    with pytest.raises(ToxlocError, match="after block 1 is not finite"):
        Steering.fit(tiny, PAIRS)


def test_models_of_another_shape_are_refused(tiny):
    with pytest.raises(ToxlocError, match=r"strength=1\) is for d_model=8; random-gpt2 has d_model=16"):
        Steering(torch.ones(8), 0, 1.0).apply(tiny)
    with pytest.raises(ToxlocError, match="no layer 5"):
        Steering(torch.ones(16), 5, 1.0).apply(tiny)
    with pytest.raises(ToxlocError, match="2 numbers of the direction are not finite"):
        Steering(torch.tensor([1.0, torch.inf, torch.nan]), 0, 1.0)
    assert tiny.interventions == []
