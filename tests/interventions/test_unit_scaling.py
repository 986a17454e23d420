import pytest
import torch
from torch.nn.functional import gelu

from tests.conftest import TEXTS, bits, random_model, same_bits
from toxloc import ContrastSet, ToxlocError, load_intervention
from toxloc.interventions.unit_scaling import UnitScaling
from toxloc.localization.unit_aurocs import unit_aurocs
from toxloc.models.batching import batches

GATED = ("llama", "gemma2", "phi3", "olmo2")
FAMILIES = ("gpt2", "opt", *GATED)


def logits(lm):
    batch = next(batches(lm, TEXTS))
    with torch.no_grad():
        return (
            lm.forward(batch.ids, batch.mask)[batch.real],
            lm.hf(input_ids=batch.ids, attention_mask=batch.mask).logits[batch.real],
        )


def random_factors(lm, gated, seed=0):
    return torch.rand(lm.n_layers, (1 + gated) * lm.d_mlp + lm.d_model, generator=torch.Generator().manual_seed(seed))


def linear_outputs(lm, text):
    """Outputs of the linear maps of every layer's MLP on one text, by hooks on the plain model: a list per layer."""
    seen, handles = [], []
    for i in range(lm.n_layers):
        mlp, outputs = getattr(lm.block(i), "mlp", lm.block(i)), []
        seen.append(outputs)
        names = [
            n
            for n in ("c_fc", "fc1", "gate_up_proj", "gate_proj", "up_proj", "c_proj", "fc2", "down_proj")
            if hasattr(mlp, n)
        ]
        for name in names:
            halves = 2 if name == "gate_up_proj" else 1
            handles.append(
                getattr(mlp, name).register_forward_hook(
                    lambda module, args, out, outputs=outputs, halves=halves: outputs.extend(out.chunk(halves, -1))
                )
            )
    with torch.no_grad():
        lm.hf(input_ids=torch.tensor([[0, *lm.tokenizer(text)["input_ids"]]]))
    for handle in handles:
        handle.remove()
    return [[out.reshape(-1, out.shape[-1]) for out in outputs] for outputs in seen]


@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_equal_weights_on_both_trees(family):
    lm = random_model(family)
    untouched, factors = logits(lm)[0], random_factors(lm, family in GATED)
    scaling = UnitScaling(factors)
    with scaling.applied(lm):
        hooks = logits(lm)
    with scaling.baked().applied(lm):
        weights = logits(lm)
    for other in (hooks[1], *weights):
        torch.testing.assert_close(hooks[0], other, rtol=1e-4, atol=1e-4)
    assert (hooks[0] - untouched).abs().max() > 1e-2


@pytest.mark.parametrize("mode", ["hooks", "weights"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_unit_gets_its_own_factor(family, mode):
    """Check layer 0, whose input no factor changes: each map into the non-linearity is scaled."""
    lm = random_model(family)
    factors = random_factors(lm, family in GATED)
    before = linear_outputs(lm, TEXTS[2])[0]
    with UnitScaling(factors, mode=mode).applied(lm):
        after = linear_outputs(lm, TEXTS[2])[0]
    assert len(before) == 2 + (family in GATED)
    for at, (was, now) in enumerate(zip(before[:-1], after[:-1], strict=True)):
        torch.testing.assert_close(now, was * factors[0, at * lm.d_mlp : (at + 1) * lm.d_mlp], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["hooks", "weights"])
def test_both_maps_of_gpt2_by_hand(mode):
    lm = random_model()
    factors = random_factors(lm, gated=False)
    mlp, text = lm.hf.transformer.h[0].mlp, TEXTS[0]
    up = factors[0, :64] * linear_outputs(lm, text)[0][0]
    expected = factors[0, 64:] * (gelu(up, approximate="tanh") @ mlp.c_proj.weight + mlp.c_proj.bias)
    with UnitScaling(factors, mode=mode).applied(lm):
        torch.testing.assert_close(linear_outputs(lm, text)[0][1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["hooks", "weights"])
@pytest.mark.parametrize("family", ["gpt2", "phi3"])
def test_weights_come_back_bit_for_bit_also_after_an_exception(family, mode, dtype):
    lm = random_model(family, dtype=dtype)
    before = bits(lm)
    with pytest.raises(KeyboardInterrupt), UnitScaling(random_factors(lm, family in GATED), mode=mode).applied(lm):
        assert same_bits(before, lm) == (mode == "hooks")
        raise KeyboardInterrupt
    assert same_bits(before, lm)
    assert lm.interventions == []
    assert all(not point.fwd_hooks for point in lm.hooked.hook_dict.values())
    assert not any(module._forward_hooks for module in lm.hf.modules())


def test_a_failure_while_applying_leaves_nothing_behind(tiny, monkeypatch):
    before = bits(tiny)
    real, calls = tiny.hooked.hooks, []

    def hooks(**kwargs):
        calls.append(1)
        return real(**kwargs) if len(calls) < 3 else 1 / 0

    monkeypatch.setattr(tiny.hooked, "hooks", hooks)
    with pytest.raises(ZeroDivisionError):
        UnitScaling(random_factors(tiny, gated=False)).apply(tiny)
    assert len(calls) == 3
    assert not any(module._forward_hooks for module in tiny.hf.modules())
    assert same_bits(before, tiny)
    assert tiny.interventions == []


def test_only_scaled_maps_are_changed(tiny):
    factors = torch.ones(2, 80)
    factors[1, 3] = 0.5
    with UnitScaling(factors).applied(tiny):
        hooked = [name for name, module in tiny.hf.named_modules() if module._forward_hooks]
    assert hooked == ["transformer.h.1.mlp.c_fc"]
    before = bits(tiny)
    with UnitScaling(factors, mode="weights").applied(tiny):
        names = [
            name
            for (name, now), was in zip(tiny.hf.named_parameters(), before, strict=True)
            if not torch.equal(now, was)
        ]
    assert names == ["transformer.h.1.mlp.c_fc.weight", "transformer.h.1.mlp.c_fc.bias"]


def test_save_and_load(tiny, tmp_path):
    scaling = UnitScaling(random_factors(tiny, gated=False), mode="weights", settings={"strength": 0.25})
    scaling.note_fit(tiny, {"n_units": 3})
    scaling.save(tmp_path / "s")
    again = load_intervention(tmp_path / "s")
    assert type(again) is UnitScaling
    assert torch.equal(again.factors, scaling.factors)
    assert again.describe() == scaling.describe()
    assert again.describe()["strength"] == 0.25 and again.describe()["n_units"] == 3
    assert repr(again) == "UnitScaling(160 units, strength=0.25, mode='weights')"


def test_baking_keeps_the_record(tiny):
    scaling = UnitScaling(random_factors(tiny, gated=False), settings={"strength": 0.5})
    scaling.note_fit(tiny, {"n_units": 3})
    baked = scaling.baked()
    assert baked.in_weights and not scaling.in_weights
    assert baked.baked() is not baked and baked.baked().describe() == baked.describe()
    assert baked.describe() == scaling.describe() | {"mode": "weights"}


@pytest.mark.parametrize(
    ("factors", "mode", "words"),
    [
        (torch.ones(2, 80), "sideways", "Unknown mode 'sideways'"),
        (torch.full((2, 80), torch.nan), "hooks", "finite factor"),
    ],
)
def test_bad_arguments(factors, mode, words):
    with pytest.raises(ToxlocError, match=words):
        UnitScaling(factors, mode=mode)


@pytest.mark.parametrize("shape", [(3, 80), (2, 79)])
def test_factors_for_another_shape_are_refused(tiny, shape):
    with pytest.raises(
        ToxlocError, match=f"factors for {shape[0]} layers of {shape[1]} units; random-gpt2 has 2 layers of 80"
    ):
        UnitScaling(torch.zeros(shape)).apply(tiny)
    assert tiny.interventions == []


def test_sides_that_look_alike_are_refused(tiny):
    with pytest.raises(ToxlocError, match="its two sides look alike"):
        unit_aurocs(tiny, ContrastSet(TEXTS, TEXTS))
