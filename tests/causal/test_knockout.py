import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.conftest import TEXTS, bits, random_model, same_bits
from toxloc import ContrastSet, ToxlocError, load_prompts, localize
from toxloc.causal.knockout import KnockoutTest, knockout, split_parts, unit_sizes
from toxloc.evaluation.evaluate import evaluate
from toxloc.evaluation.evaluators.base import FunctionEvaluator
from toxloc.interventions.methods.meow2x import Meow2X
from toxloc.models.sites import Site

PAIRS = ContrastSet(TEXTS[:2], TEXTS[2:4], paired=True)
LETTER_E = FunctionEvaluator("letter-e", lambda texts: [float("e" in text) for text in texts])
ATTENTION = Site(1, "attention")


def nll_with(lm, texts, site, keys):
    """Return the mean NLL per token with some keys of a site zeroed, text by text on the plain Hugging Face model."""

    def zero(module, args):
        a = args[0].clone()
        a[..., keys] = 0
        return (a,)

    handle = lm.down_projection(site).register_forward_pre_hook(zero)
    total, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([[0, *lm.tokenizer(text)["input_ids"]]])
        with torch.no_grad():
            total += F.cross_entropy(lm.hf(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="sum").item()
        count += ids.shape[1] - 1
    handle.remove()
    return total / count


def rises_by_hand(lm, site, keys):
    return [nll_with(lm, texts, site, keys) - nll_with(lm, texts, site, []) for texts in (PAIRS.toxic, PAIRS.neutral)]


def test_the_effect_is_the_difference_of_the_rises(tiny):
    result = knockout(tiny, PAIRS, [(1, 4), (1, 9)])
    rises = rises_by_hand(tiny, 1, [4, 9])
    assert result.toxic_rise == pytest.approx(rises[0], rel=1e-3, abs=1e-5)
    assert result.neutral_rise == pytest.approx(rises[1], rel=1e-3, abs=1e-5)
    assert result.effect == pytest.approx(result.toxic_rise - result.neutral_rise)
    assert result.effect_ci[0] < result.effect_ci[1]
    assert (result.perplexity_ratio, result.toxic_rate) == (None, None)


def test_perplexity_and_sampled_toxicity_are_measured_on_request(tiny):
    before = bits(tiny)
    prompts = load_prompts().limited(2).only("provocative")
    test = KnockoutTest(tiny, PAIRS, neutral=TEXTS[4:], prompts=prompts, evaluators=[LETTER_E])
    result = test.remove([0])
    assert result.layers == (0,)
    nll = [nll_with(tiny, TEXTS[4:], 0, [])]
    bias = tiny.b_out(0).clone()
    with torch.no_grad():
        tiny.b_out(0).zero_()
    nll.append(nll_with(tiny, TEXTS[4:], 0, slice(None)))
    with torch.no_grad():
        tiny.b_out(0).copy_(bias)
    assert result.perplexity_ratio == pytest.approx(np.exp(nll[1] - nll[0]), rel=1e-3)
    rates = []
    for scale in (0.0, 1.0):
        with Meow2X(layers=[0], scale=scale).applied(tiny):
            completions = evaluate(tiny, prompts, [LETTER_E], samples=2, fluency=False).completions
            texts = [text for samples in completions for text in samples]
        rates.append(sum("e" in text for text in texts) / len(texts))
    assert [result.toxic_rate, result.toxic_rate_before] == pytest.approx(rates)
    assert same_bits(before, tiny)


def test_a_model_breaks_if_neutral_text_loses_more_than_half_a_nat(tiny):
    result = knockout(tiny, PAIRS, [(1, 4)])
    assert not result.breaks_model and result.to_dict()["breaks_model"] is False
    for rise, breaks in ((0.5, False), (0.501, True), (-0.501, False)):
        assert dataclasses.replace(result, neutral_rise=rise).breaks_model == breaks
    assert dataclasses.replace(result, neutral_rise=3.5).to_dict()["breaks_model"] is True


def test_scaling_by_one_does_nothing(tiny):
    result = knockout(tiny, PAIRS, [0, 1], scale=1.0)
    assert (result.toxic_rise, result.neutral_rise, result.effect) == (0, 0, 0)


@pytest.mark.parametrize(
    ("parts", "message"),
    [([], "none"), ([1, (0, 2)], "both"), ([7], "has layers 0 to 1"), ([(0, 99)], "has neurons 0 to 63")],
)
def test_invalid_parts_are_named(tiny, parts, message):
    with pytest.raises(ToxlocError, match=message):
        knockout(tiny, PAIRS, parts)


def test_attribution_predicts_small_scalings_of_single_neurons(tiny):
    """Attribution is a first-order approximation, so it is close to the effect of a small scaling."""
    loc = localize(tiny, PAIRS, ["attribution"], skip_first=False)
    test = KnockoutTest(tiny, PAIRS)
    for neuron in loc.top_neurons("attribution", 3):
        result = test.remove([neuron], scale=0.98)
        assert result.effect / 0.02 == pytest.approx(loc.neuron_scores("attribution")[neuron], rel=0.1)


def test_an_interrupted_knockout_leaves_the_model_unchanged(tiny, monkeypatch):
    before, calls = bits(tiny), []
    test = KnockoutTest(tiny, PAIRS)

    def stop(*args, **kwargs):
        calls.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr("toxloc.causal.knockout.nll_per_text", stop)
    with pytest.raises(KeyboardInterrupt):
        test.remove([0])
    assert calls
    assert not tiny.interventions
    assert same_bits(before, tiny)


def test_removing_all_neurons_of_a_layer_without_a_bias_removes_the_layer():
    lm = random_model("llama")
    neurons = [(1, j) for j in range(lm.d_mlp)]
    assert knockout(lm, PAIRS, neurons).effect == pytest.approx(knockout(lm, PAIRS, [1]).effect, abs=1e-5)


def test_random_models_of_different_seeds_have_different_effects():
    a, b = (knockout(random_model(seed=s), PAIRS, [1]).effect for s in (0, 1))
    assert a != b


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma2"])
def test_removing_a_head_zeroes_its_keys(family):
    lm = random_model(family)
    result = knockout(lm, PAIRS, [(ATTENTION, 1)])
    rises = rises_by_hand(lm, ATTENTION, slice(8, 16))  # the second of two heads of width 8
    assert (result.sites, result.units) == ((), ((ATTENTION, 1),))
    assert result.toxic_rise == pytest.approx(rises[0], rel=1e-3, abs=1e-5)
    assert result.neutral_rise == pytest.approx(rises[1], rel=1e-3, abs=1e-5)
    assert abs(result.effect) > 1e-4
    assert result.neurons == ((1, 1),)


def test_a_whole_attention_is_removed_with_its_bias(tiny):
    result = knockout(tiny, PAIRS, [ATTENTION])
    bias = tiny.hf.transformer.h[1].attn.c_proj.bias
    before = [nll_with(tiny, texts, ATTENTION, []) for texts in (PAIRS.toxic, PAIRS.neutral)]
    kept = bias.clone()
    with torch.no_grad():
        bias.zero_()
        after = [nll_with(tiny, texts, ATTENTION, slice(None)) for texts in (PAIRS.toxic, PAIRS.neutral)]
        bias.copy_(kept)
    assert result.toxic_rise == pytest.approx(after[0] - before[0], rel=1e-3, abs=1e-5)
    assert result.neutral_rise == pytest.approx(after[1] - before[1], rel=1e-3, abs=1e-5)
    assert result.layers == (1,)
    assert result.to_dict()["layers"] == ["1.attention"]
    assert result.effect != knockout(tiny, PAIRS, [1]).effect


def test_removing_all_heads_without_a_bias_removes_the_attention():
    lm = random_model("llama")
    heads = [(ATTENTION, head) for head in (0, 1)]
    assert knockout(lm, PAIRS, heads).effect == pytest.approx(knockout(lm, PAIRS, [ATTENTION]).effect, abs=1e-5)


def test_sites_and_units_are_split():
    assert split_parts([3, "1.attention", Site(0)]) == ([Site(3), Site(1, "attention"), Site(0)], [])
    assert split_parts([(3, 17), ("1.attention", 1)]) == ([], [(Site(3), 17), (Site(1, "attention"), 1)])


@pytest.mark.parametrize(
    ("parts", "message"),
    [(["2.attention"], "There is no layer 2, attention"), ([("0.attention", 2)], "no head 2 in layer 0, attention")],
)
def test_unknown_attentions_and_heads_are_named(tiny, parts, message):
    with pytest.raises(ToxlocError, match=message):
        knockout(tiny, PAIRS, parts)


def test_unit_sizes_come_from_the_localization(tiny):
    loc = localize(tiny, PAIRS, ["attribution"], parts=("mlp", "attention"), draws=0)
    assert {site: len(row) for site, row in unit_sizes(tiny, loc).items()} == {
        Site(0): 64,
        Site(1): 64,
        Site(0, "attention"): 2,
        Site(1, "attention"): 2,
    }
    sizes = unit_sizes(tiny, loc, "attention")
    assert list(sizes) == [Site(0, "attention"), Site(1, "attention")]
    np.testing.assert_array_equal(sizes["1.attention"], loc.unit_sizes()[ATTENTION])
    with pytest.raises(ToxlocError, match="2 layers of 2 heads; random-gpt2 has 3 layers of 4"):
        unit_sizes(random_model("gpt2", n_layer=3, n_head=4), loc, "attention")
