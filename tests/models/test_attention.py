import math

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from benchmarks.families import DENSE
from tests.conftest import TEXTS, random_hf, random_model, tokenizer
from tests.models.test_hooked_transformer import with_class
from toxloc import Meow2X, Site, ToxlocError
from toxloc.models.attention import watched_attention
from toxloc.models.batching import batches, encode, pad
from toxloc.models.loaded import LoadedModel


def attended(lm, texts=TEXTS):
    """Return the batch of some texts, and what the attentions of all layers read in it."""
    batch, seen = pad(lm, encode(lm, texts, 64), [*range(len(texts))], "right"), {}
    with watched_attention(lm, lm.sites("attention"), seen.__setitem__) as forward:
        forward(batch)
    return batch, seen


def heads_of(hf, linear, run):
    """Return what W_O reads in a run of the plain model."""
    kept = []
    with linear.register_forward_pre_hook(lambda module, args: kept.append(args[0])):
        run()
    return kept[0]


# mixtral has experts, gpt_oss learned sinks, lfm2 and jamba attention in some layers, deepseek_v3 latent attention and
# qwen3_5 a vision tower.
@pytest.mark.parametrize("family", [*DENSE, "gpt_oss", "mixtral", "lfm2", "deepseek_v3", "jamba", "qwen3_5"])
def test_weights_equal_those_that_transformers_returns(family):
    lm = random_model(family)
    before, registered = lm.hf.config._attn_implementation, set(ALL_ATTENTION_FUNCTIONS)
    batch, seen = attended(lm)
    assert lm.hf.config._attn_implementation == before and set(ALL_ATTENTION_FUNCTIONS) == registered
    assert list(seen) == lm.sites("attention")
    lm.hf.config._attn_implementation = "eager"
    returned = lm.hf(input_ids=batch.ids, attention_mask=batch.mask, output_attentions=True, use_cache=False).attentions
    expected = [weights for weights in returned if weights is not None]  # of hybrids, some layers have none
    for found, weights in zip(seen.values(), expected[-len(seen) :], strict=True):
        for row, length in enumerate(batch.mask.sum(1).tolist()):
            torch.testing.assert_close(
                found.weights[row, :, :length, :length], weights[row, :, :length, :length], rtol=1e-4, atol=1e-5
            )
            assert found.weights[row, :, :length].triu(1).abs().max() == 0
    assert all(found.weights[0, :, 3].std() > 1e-3 for found in seen.values())


def test_weights_of_gpt2_are_the_softmax_of_queries_times_keys(tiny):
    batch, seen = attended(tiny, TEXTS[2:3])
    attention, n_heads = tiny.hf.transformer.h[0].attn, tiny.at(Site(0, "attention")).n_units
    x = tiny.hf.transformer.h[0].ln_1(
        tiny.hf.transformer.wte(batch.ids) + tiny.hf.transformer.wpe.weight[: batch.ids.shape[1]]
    )
    q, k, v = (x @ attention.c_attn.weight + attention.c_attn.bias)[0].chunk(3, 1)
    width = q.shape[1] // n_heads
    for head in range(n_heads):
        own = slice(head * width, (head + 1) * width)
        for query in range(len(q)):
            products = k[: query + 1, own] @ q[query, own] / math.sqrt(width)
            torch.testing.assert_close(
                seen[Site(0, "attention")].weights[0, head, query, : query + 1], products.softmax(0)
            )
        torch.testing.assert_close(seen[Site(0, "attention")].values_of(head)[0], v[:, own])


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "qwen2", "gpt_neox", "gpt_oss"])
def test_weights_times_values_are_the_outputs_of_the_heads(family):
    """Of grouped heads too: llama and qwen2 have more heads than values."""
    lm = random_model(family, **({"num_attention_heads": 4, "num_key_value_heads": 2} if family == "llama" else {}))
    batch, seen = attended(lm)
    for site, found in seen.items():
        view = lm.at(site)
        z = heads_of(lm.hf, view.linear, lambda: lm.hf(input_ids=batch.ids, attention_mask=batch.mask))
        for head in range(view.n_units):
            summed = torch.einsum("bqs,bsd->bqd", found.weights[:, head], found.values_of(head))
            expected = z.flatten(2)[..., view.rows(head)]
            torch.testing.assert_close(summed[batch.real], expected[batch.real], rtol=1e-3, atol=1e-4)


def test_values_are_not_given_if_a_gate_or_a_norm_changes_the_outputs_of_the_heads():
    for family in ("bitnet", "qwen3_5_text", "gpt_neo"):  # a norm, a gate, and a class that does not show values
        assert all(found.values is None for found in attended(random_model(family))[1].values())


def test_a_head_that_is_turned_down_keeps_its_pattern_and_values(tiny):
    _, plain = attended(tiny)
    with Meow2X(neurons=[("0.attention", 1)], scale=0.0).applied(tiny):
        _, scaled = attended(tiny)
    for name in ("weights", "values"):
        first, second = (
            tuple(getattr(seen[site], name) for seen in (plain, scaled)) for site in tiny.sites("attention")
        )
        torch.testing.assert_close(*first)
        assert (second[0] - second[1]).abs().max() > 1e-3


def test_only_the_requested_attentions_are_read(tiny):
    seen = []
    with watched_attention(tiny, [Site(1, "attention")], lambda site, found: seen.append(site)) as forward:
        for batch in batches(tiny, TEXTS, tokens=24):
            forward(batch)
    assert seen == [Site(1, "attention")] * len(list(batches(tiny, TEXTS, tokens=24)))


def test_the_attention_of_the_model_is_restored_after_an_error(tiny):
    before = set(ALL_ATTENTION_FUNCTIONS)
    with (
        pytest.raises(ZeroDivisionError),
        watched_attention(tiny, tiny.sites("attention"), lambda *_: 1 / 0) as forward,
    ):
        forward(pad(tiny, [[1, 2]], [0], "right"))
    assert tiny.hf.config._attn_implementation == "sdpa" and set(ALL_ATTENTION_FUNCTIONS) == before
    assert not tiny.at(Site(0, "attention")).linear._forward_pre_hooks


@pytest.mark.parametrize("family", ["diffllama", "deepseek_v4"])
def test_an_attention_without_one_pattern_per_head_is_named(family):
    """Differential attention subtracts two patterns; DeepSeek V4 also attends to compressed positions."""
    with pytest.raises(ToxlocError, match=rf"layer \d, attention of random-{family} .* one attention pattern"):
        attended(random_model(family))


def test_a_model_with_hooks_on_modules_gives_the_same(tiny):
    _, expected = attended(tiny)
    _, seen = attended(LoadedModel.from_hf(tiny.hf, tiny.tokenizer, hooks="modules"))
    for site, found in expected.items():
        torch.testing.assert_close(seen[site].weights, found.weights)


@with_class
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_hooked_transformer_of_the_user_gives_the_same(family):
    full = LoadedModel.from_hf(random_hf(family), tokenizer(), hooks="transformer")
    alone = LoadedModel.of(full.hooked)
    assert alone.hf is None
    (batch, expected), (_, seen) = attended(full), attended(alone)
    for site, found in expected.items():
        for row, length in enumerate(batch.mask.sum(1).tolist()):
            ours, theirs = (x.weights[row, :, :length, :length] for x in (seen[site], found))
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
            ours, theirs = (x.values_of(1)[row, :length] for x in (seen[site], found))
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
