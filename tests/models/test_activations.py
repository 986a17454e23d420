from contextlib import ExitStack

import pytest
import torch
from transformers.activations import ACT2FN

from benchmarks.families import DENSE
from tests.conftest import TEXTS, random_model
from toxloc.models.activations import change, keys_of, mlp_linears, pooled, residual, written_by
from toxloc.models.batching import batches
from toxloc.models.sites import Site


def all_places(lm, layer):
    attention = Site(layer, "attention")
    return [
        keys_of(lm, layer),
        *mlp_linears(lm, layer),
        written_by(lm, layer),
        keys_of(lm, attention),
        written_by(lm, attention),
        residual(lm, layer),
    ]


@pytest.mark.parametrize("family", [*sorted(DENSE), "openai-gpt"])  # blocks of openai-gpt return lists
def test_a_change_is_the_same_on_both_trees_and_is_removed(family):
    lm = random_model(family)
    batch = next(batches(lm, TEXTS))

    def logits():
        with torch.no_grad():
            return (
                lm.forward(batch.ids, batch.mask)[batch.real],
                lm.hf(input_ids=batch.ids, attention_mask=batch.mask).logits[batch.real],
            )

    unchanged = logits()[0]
    for place in all_places(lm, 1):
        with ExitStack() as stack:
            change(lm, place, lambda x: x * torch.linspace(-1, 1, x.shape[-1]), stack)  # norms do not undo this change
            hooked, plain = logits()
        torch.testing.assert_close(hooked, plain, rtol=1e-4, atol=1e-4)
        assert (hooked - unchanged).abs().max() > 1e-3, place.hook
        for reverted in logits():
            torch.testing.assert_close(reverted, unchanged, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "phi3", "gemma2"])
def test_the_linear_maps_of_an_mlp_are_in_the_order_up_or_gate_and_up_then_down(family):
    """gpt2: keys = act(up). Gated families: keys = act(gate) * up, even if gate and up share a matrix."""
    lm = random_model(family)
    setting = {"gpt2": "activation_function", "gemma2": "hidden_activation"}.get(family, "hidden_act")
    act = ACT2FN[getattr(lm.hf.config, setting)]
    places = [*mlp_linears(lm, 1), keys_of(lm, 1)]
    *inputs, m, keys = pooled(lm, ["a"], places, skip_first=False, max_length=1)
    expected = act(inputs[0]) if family == "gpt2" else act(inputs[0]) * inputs[1]
    assert len(inputs) == (1 if family == "gpt2" else 2)
    torch.testing.assert_close(keys, expected, rtol=1e-4, atol=1e-5)
    bias = 0 if lm.b_out(1) is None else lm.b_out(1)
    torch.testing.assert_close(m, keys @ lm.W_out(1) + bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", sorted(DENSE))
def test_scaling_a_head_equals_scaling_its_rows_of_w_o(family):
    """The factor applies only to the keys of this head, for both shapes that hooks give z."""
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
        scaled = logits()
    with torch.no_grad():
        view.W[view.rows(1)] *= 0.3
    expected = logits()[1]
    for tree in scaled:
        torch.testing.assert_close(tree, expected, rtol=1e-4, atol=1e-4)
    assert (expected - plain).abs().max() > 1e-3


def test_a_change_of_up_does_not_change_gate_in_a_joint_matrix():
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
def test_pooling_equals_the_plain_model_on_single_texts(pool, skip_first):
    lm = random_model("llama")
    texts = [*TEXTS, "Hm"]
    (activations,) = pooled(lm, texts, [residual(lm, 0)], pool, skip_first=skip_first)
    for i, text in enumerate(texts):
        ids = torch.tensor([[0, *lm.tokenizer(text)["input_ids"]]])
        with torch.no_grad():
            rows = lm.hf(input_ids=ids, output_hidden_states=True).hidden_states[1][0, skip_first:]
        torch.testing.assert_close(
            activations[i], rows.amax(0) if pool == "max" else rows.mean(0), rtol=1e-4, atol=1e-5
        )


def test_changes_are_computed_in_float32_and_rounded_back():
    lm = random_model("gpt2", dtype=torch.bfloat16)
    seen = []
    batch = next(batches(lm, TEXTS))
    with ExitStack() as stack, torch.no_grad():
        change(lm, residual(lm, 0), lambda x: seen.append(x.dtype) or x, stack)
        assert lm.hf(input_ids=batch.ids, attention_mask=batch.mask).logits.dtype == torch.bfloat16
    assert seen == [torch.float32]
