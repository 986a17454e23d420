from contextlib import ExitStack

import pytest
import torch

from tests.conftest import TEXTS, random_model
from toxloc.models.activations import change, keys_of, mlp_linears, pooled, residual, written_by
from toxloc.models.architectures import ARCHITECTURES
from toxloc.models.batching import batches
from toxloc.models.sites import Site


def everywhere(lm, layer):
    attention = Site(layer, "attention")
    return [
        keys_of(lm, layer),
        *mlp_linears(lm, layer),
        written_by(lm, layer),
        keys_of(lm, attention),
        written_by(lm, attention),
        residual(lm, layer),
    ]


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_a_change_is_the_same_on_both_trees_and_leaves_no_trace(family):
    lm = random_model(family)
    batch = next(batches(lm, TEXTS))

    def logits():
        with torch.no_grad():
            return (
                lm.forward(batch.ids, batch.mask)[batch.real],
                lm.hf(input_ids=batch.ids, attention_mask=batch.mask).logits[batch.real],
            )

    untouched = logits()[0]
    for site in everywhere(lm, 1):
        with ExitStack() as stack:
            change(lm, site, lambda x: x * torch.linspace(-1, 1, x.shape[-1]), stack)  # no norm undoes it
            hooked, plain = logits()
        torch.testing.assert_close(hooked, plain, rtol=1e-4, atol=1e-4)
        assert (hooked - untouched).abs().max() > 1e-3, site.hook
        for again in logits():
            torch.testing.assert_close(again, untouched, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "phi3", "gemma2"])
def test_what_goes_into_the_neurons_is_seen_under_its_hook_and_in_its_module(family):
    """gpt2: neurons = gelu(up). Gated families: neurons = act(gate) * up, whether or not they share a matrix."""
    lm = random_model(family)
    found = pooled(lm, ["one two three"], [*mlp_linears(lm, 1), keys_of(lm, 1)], "max", skip_first=False)
    assert [x.shape[1] for x in found] == [lm.d_mlp] * (len(found) - 2) + [lm.d_model, lm.d_mlp]
    assert len(found) == (3 if family == "gpt2" else 4)


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_a_head_turned_down_is_the_same_as_its_rows_of_w_o_turned_down(family):
    """Whatever shape the hook shows z in, the factor meets the keys of this head alone."""
    lm, site = random_model(family), Site(1, "attention")
    view, batch = lm.at(site), next(batches(lm, TEXTS))

    def logits():
        with torch.no_grad():
            return (
                lm.forward(batch.ids, batch.mask)[batch.real],
                lm.hf(input_ids=batch.ids, attention_mask=batch.mask).logits[batch.real],
            )

    plain = logits()[1]
    with ExitStack() as stack:
        change(lm, keys_of(lm, site), view.per_key(torch.tensor([1.0, 0.3])).mul, stack)
        found = logits()
    with torch.no_grad():
        view.W[view.rows(1)] *= 0.3
    expected = logits()[1]
    for one in found:
        torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-4)
    assert (expected - plain).abs().max() > 1e-3


def test_a_change_of_one_half_leaves_the_other_alone():
    lm = random_model("phi3")
    seen = []
    gate, up, _ = mlp_linears(lm, 0)
    gate.module.register_forward_hook(lambda module, args, out: seen.append(out.clone()))
    batch = next(batches(lm, TEXTS))
    with ExitStack() as stack, torch.no_grad():
        lm.hf(input_ids=batch.ids, attention_mask=batch.mask)
        change(lm, up, torch.zeros_like, stack)
        gate.module.register_forward_hook(lambda module, args, out: seen.append(out.clone()))
        lm.hf(input_ids=batch.ids, attention_mask=batch.mask)
    before, after = seen[0], seen[-1]
    assert torch.equal(before[..., gate.columns], after[..., gate.columns])
    assert (after[..., up.columns] == 0).all() and (before[..., up.columns] != 0).any()


@pytest.mark.parametrize("pool", ["max", "mean"])
@pytest.mark.parametrize("skip_first", [True, False])
def test_pooling_equals_one_text_at_a_time_by_the_plain_model(pool, skip_first):
    lm = random_model("llama")
    texts = [*TEXTS, "Hm"]
    site = residual(lm, 0)
    (found,) = pooled(lm, texts, [site], pool, skip_first=skip_first)
    for i, text in enumerate(texts):
        ids = torch.tensor([[0, *lm.tokenizer(text)["input_ids"]]])
        with torch.no_grad():
            rows = lm.hf(input_ids=ids, output_hidden_states=True).hidden_states[1][0, skip_first:]
        torch.testing.assert_close(found[i], rows.amax(0) if pool == "max" else rows.mean(0), rtol=1e-4, atol=1e-5)


def test_changes_are_computed_in_float32_and_rounded_back():
    lm = random_model("gpt2", dtype=torch.bfloat16)
    seen = []
    batch = next(batches(lm, TEXTS))
    with ExitStack() as stack, torch.no_grad():
        change(lm, residual(lm, 0), lambda x: seen.append(x.dtype) or x, stack)
        assert lm.hf(input_ids=batch.ids, attention_mask=batch.mask).logits.dtype == torch.bfloat16
    assert seen == [torch.float32]
