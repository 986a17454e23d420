"""Banks of experts: what watchers are shown, and that changes of activations equal changes of weights."""

from contextlib import ExitStack
from functools import cache

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module

from benchmarks.families import EXPERTS, random_model
from tests.conftest import TEXTS
from toxloc.models.banks import Bank, layout_of
from toxloc.models.batching import encode, pad

FUSED = tuple(family for family in EXPERTS if family not in ("llama4_text", "jetmoe"))


@cache
def model(family):
    return random_model(family)


def banks_of(lm):
    """The last bank of the Hugging Face model and of the hooked model, and its layer."""
    view = lm.at(lm.sites("expert")[-1])
    return view.hf_bank, view.bank, view.site.layer


def batch_of(lm):
    """Texts of different lengths in one batch with padding."""
    return pad(lm, encode(lm, TEXTS, 32), [*range(len(TEXTS))], "right")


def logits(lm, hooked=False):
    batch = batch_of(lm)
    with torch.no_grad():
        if hooked:
            return lm.forward(batch.ids, batch.mask)[batch.real]
        return lm.hf(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits[batch.real]


def watched(bank, run):
    """Run a model, and return what the bank shows to a watcher, by expert."""
    shown = {}
    with ExitStack() as stack:
        bank.watch(lambda routed: shown.update({routed.expert: routed}), stack)
        run()
    return shown


def outputs_of(module, run):
    """Run a model, and return the first output of a module, flattened to rows."""
    seen = []
    handle = module.register_forward_hook(
        lambda module, args, out: seen.append((out[0] if isinstance(out, tuple) else out).clone())
    )
    run()
    handle.remove()
    return seen[-1].flatten(0, -2)


def used(bank, run):
    """The expert to which the most tokens are routed."""
    return max(shown := watched(bank, run), key=lambda expert: len(shown[expert].tokens))


@pytest.mark.parametrize("family", EXPERTS)
def test_watching_changes_no_logits_and_leaves_no_trace(family):
    lm = model(family)
    for bank, hooked in zip(banks_of(lm)[:2], (False, True), strict=True):
        before, names = logits(lm, hooked), set(vars(bank.module))
        first, second = ExitStack(), ExitStack()
        bank.watch(lambda routed: None, first)
        bank.change_keys(0, lambda a: a, second)
        torch.testing.assert_close(logits(lm, hooked), before, rtol=1e-5, atol=1e-5)
        first.close()
        assert "forward" in vars(bank.module)
        second.close()
        assert set(vars(bank.module)) == names
        assert bank.module.forward.__self__ is bank.module
        assert bank.router is None or not bank.router._forward_hooks
        assert torch.equal(logits(lm, hooked), before)


def test_a_bank_that_accelerate_has_wrapped_is_watched_and_left_as_before():
    lm = random_model("mixtral")
    bank = banks_of(lm)[0]
    before, placed = logits(lm), []

    class Placed(ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            placed.append(module)
            return args, kwargs

    add_hook_to_module(bank.module, Placed())
    original = bank.module._old_forward
    shown = watched(bank, lambda: torch.testing.assert_close(logits(lm), before, rtol=1e-5, atol=1e-5))
    assert shown
    assert placed == [bank.module]
    assert bank.module._old_forward == original
    assert torch.equal(logits(lm), before)


@pytest.mark.parametrize("family", EXPERTS)
def test_the_keys_times_the_weights_of_all_experts_add_up_to_the_output_of_the_bank(family):
    lm = model(family)
    bank = banks_of(lm)[0]
    expected = outputs_of(bank.module, lambda: logits(lm))
    total = torch.zeros_like(expected)
    for expert, routed in watched(bank, lambda: logits(lm)).items():
        W, bias = bank.weights(expert)
        assert W.shape == (routed.keys.shape[1], lm.d_model)
        if routed.after:  # the router weights are not in the output yet
            torch.testing.assert_close(routed.keys, routed.activations * routed.router[:, None])
            total[routed.rows] += routed.activations @ W
        else:
            share = routed.keys @ W if bias is None else routed.keys @ W + routed.router[:, None] * bias
            total.index_add_(0, routed.rows, share)
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", EXPERTS)
def test_the_sum_over_experts_by_token_is_what_the_block_adds(family):
    lm = model(family)
    bank, _, layer = banks_of(lm)
    sites = [site for site in lm.sites("shared_expert") if site.layer == layer]
    expected = outputs_of(lm.at(lm.sites("expert")[-1]).sum_module, lambda: logits(lm))
    for site in sites:
        shared = outputs_of(lm.down_projection(site), lambda site=site: logits(lm))
        if family == "qwen2_moe":  # a gate multiplies the shared expert
            gate = lm.block(layer).mlp.shared_expert_gate
            shared = shared * torch.sigmoid(outputs_of(gate, lambda: logits(lm)))
        expected = expected - shared
    if family == "jetmoe":
        expected = expected - lm.block(layer).mlp.bias
    total = torch.zeros_like(expected)
    for expert, routed in watched(bank, lambda: logits(lm)).items():
        W, bias = bank.weights(expert)
        total.index_add_(0, routed.tokens, routed.keys @ W)
        if bias is not None:
            total.index_add_(0, routed.tokens, routed.router[:, None] * bias)
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FUSED)
def test_each_expert_is_shown_the_tokens_that_the_router_sends_to_it(family):
    lm, calls = model(family), []
    bank = banks_of(lm)[0]
    handle = bank.module.register_forward_pre_hook(lambda module, args: calls.append(args))
    logits(lm)
    handle.remove()
    _, index, weights = calls[0]
    shown = watched(bank, lambda: logits(lm))
    assert set(shown) == set(index.unique().tolist())
    for expert, routed in shown.items():
        tokens, slot = torch.where(index == expert)
        assert torch.equal(routed.tokens, tokens)
        assert torch.equal(routed.router, weights[tokens, slot])
        assert torch.equal(routed.rows, tokens)


@pytest.mark.parametrize("family", ["llama4_text", "jetmoe"])
def test_banks_that_do_not_see_the_router_show_its_choice(family):
    lm = model(family)
    bank, _, layer = banks_of(lm)
    mlp = lm.block(layer).feed_forward if family == "llama4_text" else lm.block(layer).mlp
    router = mlp.router if family == "llama4_text" else mlp.router.layer
    seen = []
    handle = router.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    shown = watched(bank, lambda: logits(lm))
    handle.remove()
    values, index = (seen[0] @ router.weight.T).topk(2, dim=1)
    weights = values.sigmoid() if family == "llama4_text" else values.softmax(1)
    assert set(shown) == set(index.unique().tolist())
    for expert, routed in shown.items():
        tokens, slot = torch.where(index == expert)
        order = routed.tokens.argsort()
        assert torch.equal(routed.tokens[order], tokens)
        torch.testing.assert_close(routed.router[order], weights[tokens, slot])
        assert routed.after == (family == "jetmoe")


@pytest.mark.parametrize("family", EXPERTS)
def test_the_activations_of_a_text_do_not_depend_on_padding_or_on_the_other_texts(family):
    lm = model(family)
    bank, batch = banks_of(lm)[0], batch_of(lm)
    together = watched(bank, lambda: logits(lm))
    assert not batch.real.all()
    n = batch.ids.shape[1]
    for i in range(len(TEXTS)):
        ids = batch.ids[i : i + 1, : int(batch.mask[i].sum())]
        with torch.no_grad():
            alone = watched(bank, lambda ids=ids: lm.hf(input_ids=ids))
        for expert, routed in alone.items():
            here = (together[expert].tokens // n == i) & batch.real.flatten()[together[expert].tokens]
            order = routed.tokens.argsort()
            ours = together[expert].tokens[here].argsort()
            assert torch.equal(together[expert].tokens[here][ours] - i * n, routed.tokens[order])
            torch.testing.assert_close(together[expert].keys[here][ours], routed.keys[order], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", EXPERTS)
def test_a_change_of_neurons_or_of_the_output_equals_a_change_of_the_weights(family):
    lm = model(family)
    untouched = logits(lm)
    for bank, hooked in zip(banks_of(lm)[:2], (False, True), strict=True):
        expert = used(bank, lambda hooked=hooked: logits(lm, hooked))
        W, bias = bank.weights(expert)
        factors = torch.ones(len(W))
        factors[1], factors[5] = -2.0, 0.0
        for by_hook, by_weights in (
            (lambda stack, b=bank, e=expert, f=factors: b.change_keys(e, f.mul, stack), [(W, factors[:, None])]),
            (
                lambda stack, b=bank, e=expert: b.change_output(e, lambda m: -0.5 * m, stack),
                [(part, torch.tensor(-0.5)) for part in (W, bias) if part is not None],
            ),
        ):
            with ExitStack() as stack:
                by_hook(stack)
                changed = logits(lm, hooked)
            kept = [weight.clone() for weight, _ in by_weights]
            with torch.no_grad():
                for weight, factor in by_weights:
                    weight *= factor
                expected = logits(lm, hooked)
                for (weight, _), old in zip(by_weights, kept, strict=True):
                    weight.copy_(old)
            assert (expected - untouched).abs().max() > 1e-3
            torch.testing.assert_close(changed, expected, rtol=1e-4, atol=1e-4)


def test_a_change_of_an_expert_is_shown_to_watchers_and_leaves_other_experts_alone():
    lm = model("mixtral")
    bank = banks_of(lm)[0]
    before = watched(bank, lambda: logits(lm))
    with ExitStack() as stack:
        bank.change_keys(1, lambda a: 3 * a, stack)
        after = watched(bank, lambda: logits(lm))
    for expert, routed in before.items():
        factor = 3 if expert == 1 else 1
        torch.testing.assert_close(after[expert].activations, factor * routed.activations)
        torch.testing.assert_close(after[expert].keys, factor * routed.keys)
        assert torch.equal(after[expert].tokens, routed.tokens)


def test_changes_of_16_bit_activations_are_computed_in_float32():
    lm, seen = random_model("mixtral", dtype=torch.bfloat16), []
    bank = banks_of(lm)[0]
    expert = used(bank, lambda: logits(lm))
    with ExitStack() as stack:
        bank.change_keys(expert, lambda a: seen.append(a.dtype) or a, stack)
        bank.change_output(expert, lambda m: seen.append(m.dtype) or m, stack)
        logits(lm)
    assert seen == [torch.float32, torch.float32]


@pytest.mark.parametrize("family", EXPERTS)
def test_gradients_pass_through_a_watched_bank_as_through_the_module(family):
    lm = model(family)
    bank, _, layer = banks_of(lm)
    ids, gradients = batch_of(lm).ids, []
    for watch in (False, True):
        leaves = []

        def cut(module, args, leaves=leaves):
            x = args[0] if isinstance(args[0], torch.Tensor) else args[0][0]
            leaves.append(x.detach().requires_grad_(True))
            return leaves[-1], *args[1:]

        handle = lm.block(layer).register_forward_pre_hook(cut)
        with ExitStack() as stack:
            if watch:
                bank.watch(lambda routed: None, stack)
            lm.hf(input_ids=ids, use_cache=False).logits.log_softmax(-1)[..., 0].sum().backward()
        handle.remove()
        gradients.append(leaves[0].grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4 * float(gradients[0].abs().max()))


def test_only_modules_that_hold_experts_have_a_layout():
    layouts = {family: layout_of(banks_of(model(family))[0].module) for family in EXPERTS}
    assert layouts == {**dict.fromkeys(FUSED, "fused"), "llama4_text": "batched", "jetmoe": "parallel"}
    lm = model("mixtral")
    assert [layout_of(module) for module in (lm.block(0), lm.block(0).mlp, lm.block(0).mlp.gate)] == [None] * 3


@pytest.mark.parametrize("family", EXPERTS)
def test_views_of_weights_are_live_and_the_same_parameter_in_both_trees(family):
    lm = model(family)
    bank, hooked, _ = banks_of(lm)
    assert isinstance(bank, Bank) and bank is not hooked
    assert bank.n_experts == 4
    for expert in range(4):
        (W, bias), (other, other_bias) = bank.weights(expert), hooked.weights(expert)
        assert W.data_ptr() == other.data_ptr()
        assert W.shape[1] == lm.d_model
        assert (bias is None) == (other_bias is None) == (family != "gpt_oss")
        assert bias is None or bias.data_ptr() == other_bias.data_ptr()
