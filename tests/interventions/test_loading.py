"""Saved interventions; files of version 0.1 are written by hand here, in the layout of that version."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import TEXTS, bits, same_bits
from toxloc import Chain, DirectionalAblation, Meow2X, ProFS, Steering, ToxlocError, load_intervention
from toxloc.interventions.methods.value_vector import ValueVector
from toxloc.models.batching import batches
from toxloc.models.sites import Site

torch.manual_seed(0)
UNIT = torch.nn.functional.normalize(torch.randn(16), dim=0)
V = torch.linalg.qr(torch.randn(16, 2))[0].T.contiguous()
U, W = torch.randn(2, 64), torch.randn(2, 16)
FACTORS = torch.rand(2, 80)
MAPS = {
    f"{layer}.{name}": part
    for layer in range(2)
    for name, part in zip(
        ("omega", "beta", "low", "high"),
        (torch.rand(16), torch.randn(16), torch.full((16,), -1.0), torch.ones(16)),
        strict=True,
    )
}
TRNE_CONFIG = {"metric": "kl", "ridge": 1.0, "shrink": False, "fisher": "empirical", "seed": 0, "emphasis": {}}


def write_as_version_0_1(folder, kind, config, tensors, record=None):
    folder.mkdir()
    save_file(tensors, folder / "tensors.safetensors")
    (folder / "intervention.json").write_text(
        json.dumps(
            {
                "format_version": 1,
                "kind": kind,
                "config": config,
                "fitted_on": {"name": "some-model", "fingerprint": "0123"},
                "record": record or {"strength": 1},
            }
        )
    )


def logits(lm):
    batch = next(batches(lm, TEXTS))
    with torch.no_grad():
        return lm.hf(input_ids=batch.ids, attention_mask=batch.mask).logits[batch.real]


def hooked(lm, layer, module, change):
    """Logits of the plain model with the output of a module changed by a hook."""
    where = {"block": lm.block(layer), "mlp": lm.block(layer).mlp}[module]

    def after(module, args, out):
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    handle = where.register_forward_hook(after)
    result = logits(lm)
    handle.remove()
    return result


def in_weights(lm, change):
    """Logits of the plain model with its weights changed by hand."""
    before = bits(lm)
    with torch.no_grad():
        change(lm.hf.transformer.h)
    result = logits(lm)
    with torch.no_grad():
        for weight, old in zip(lm.hf.parameters(), before, strict=True):
            weight.copy_(old)
    return result


def with_trne(lm):
    def change(h):
        for layer in (0, 1):
            h[layer].mlp.c_proj.weight += torch.outer(U[layer], W[layer])

    return in_weights(lm, change)


def with_meow(lm):
    def change(h):
        h[0].mlp.c_proj.weight[3] *= 0.25
        h[1].mlp.c_proj.weight[5] *= 0.75

    return in_weights(lm, change)


def with_layers(lm):
    def change(h):
        h[0].mlp.c_proj.weight[5] *= 0.125
        h[1].mlp.c_proj.weight.mul_(0.125)
        h[1].mlp.c_proj.bias.mul_(0.125)

    return in_weights(lm, change)


def with_units(lm):
    def change(h):
        for layer in (0, 1):
            up, down = FACTORS[layer].split([64, 16])
            for linear, factor in ((h[layer].mlp.c_fc, up), (h[layer].mlp.c_proj, down)):
                linear.weight.mul_(factor)
                linear.bias.mul_(factor)

    return in_weights(lm, change)


def with_ablation(lm):
    away = torch.eye(16) - 0.7 * torch.outer(UNIT, UNIT)

    def change(h):
        for linear in (h[0].attn.c_proj, h[0].mlp.c_proj):
            linear.weight.copy_(linear.weight @ away)
            linear.bias.copy_(linear.bias @ away)

    return in_weights(lm, change)


def with_profs(lm):
    def change(h):
        h[1].mlp.c_proj.weight.copy_(h[1].mlp.c_proj.weight @ (torch.eye(16) - 0.5 * V.T @ V))

    return in_weights(lm, change)


def with_transport(lm):
    def moved(layer):
        omega, beta, low, high = (MAPS[f"{layer}.{name}"] for name in ("omega", "beta", "low", "high"))
        return lambda a: torch.where((a >= low) & (a <= high), 0.75 * a + 0.25 * (omega * a + beta), a)

    handles = [lm.block(i).mlp.register_forward_hook(lambda module, args, out, i=i: moved(i)(out)) for i in (0, 1)]
    result = logits(lm)
    for handle in handles:
        handle.remove()
    return result


OLD = {
    "trne": (TRNE_CONFIG, {"layer": torch.tensor([0, 1]), "u": U, "v": W}, with_trne),
    "meow2x": (
        {"layers": [], "n_neurons": 2, "scale": None, "mode": "hooks"},
        {"neurons": torch.tensor([[0, 3], [1, 5]]), "scales": torch.tensor([0.25, 0.75]).double()},
        with_meow,
    ),
    "meow2x of layers": (
        {"layers": [1], "n_neurons": 1, "scale": 0.125, "mode": "weights"},
        {"neurons": torch.tensor([[0, 5]]), "scales": torch.tensor([0.125]).double()},
        with_layers,
    ),
    "aura": ({"strength": 1.0, "mode": "hooks"}, {"factors": FACTORS}, with_units),
    "damp": ({"k": 160, "scale": 0.0, "mode": "weights"}, {"factors": FACTORS}, with_units),
    "unit-scaling": ({"mode": "hooks"}, {"factors": FACTORS}, with_units),
    "linear-act": ({"lam": 0.25}, MAPS, with_transport),
    "profs": ({"layers": [1], "strength": 0.5}, {"1": V}, with_profs),
    "steering": (
        {"layer": 0, "strength": 1.5},
        {"direction": UNIT},
        lambda lm: hooked(lm, 0, "block", lambda x: x - 1.5 * UNIT),
    ),
    "ablation": ({"layers": [0], "strength": 0.7, "mode": "hooks"}, {"direction": UNIT}, with_ablation),
    "value-vector": (
        {"source": "probe", "layer": 0, "alpha": 2.5},
        {"direction": UNIT},
        lambda lm: hooked(lm, 0, "block", lambda x: x - 2.5 * UNIT),
    ),
}


@pytest.mark.parametrize("name", OLD)
def test_files_of_version_0_1_load_and_do_the_same(tiny, tmp_path, name):
    kind = name.split()[0]
    config, tensors, by_hand = OLD[name]
    before = bits(tiny)
    expected, untouched = by_hand(tiny), logits(tiny)
    assert same_bits(before, tiny)
    write_as_version_0_1(tmp_path / "old", kind, config, tensors)
    loaded = load_intervention(tmp_path / "old")
    assert loaded.kind == kind
    assert loaded.fitted_on == {"name": "some-model", "fingerprint": "0123"}
    with loaded.applied(tiny):
        torch.testing.assert_close(logits(tiny), expected, rtol=1e-4, atol=1e-4)
    assert (expected - untouched).abs().max() > 1e-2
    loaded.save(tmp_path / "new")
    again = load_intervention(tmp_path / "new")
    assert again.describe() == loaded.describe()
    assert again.fingerprint == loaded.fingerprint


def test_a_chain_of_version_0_1_with_renamed_settings(tiny, tmp_path):
    parts = [("value-vector", *OLD["value-vector"][:2]), ("linear-act", *OLD["linear-act"][:2])]
    write_as_version_0_1(
        tmp_path / "old",
        "chain",
        {"parts": [{"kind": kind, "config": config, "fitted_on": {}, "record": {}} for kind, config, _ in parts]},
        {f"{i}/{name}": t for i, (_, _, tensors) in enumerate(parts) for name, t in tensors.items()},
    )
    chain = load_intervention(tmp_path / "old")
    assert [part.strength for part in chain.leaves()] == [2.5, 0.25]
    with ValueVector(UNIT, 0, 2.5).applied(tiny):
        expected = with_transport(tiny)
    with chain.applied(tiny):
        torch.testing.assert_close(logits(tiny), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["linear-act", "value-vector"])
def test_settings_are_written_under_their_new_names(tmp_path, kind):
    write_as_version_0_1(tmp_path / "old", kind, *OLD[kind][:2])
    load_intervention(tmp_path / "old").save(tmp_path / "new")
    config = json.loads((tmp_path / "new" / "intervention.json").read_text())["config"]
    assert config["strength"] == {"linear-act": 0.25, "value-vector": 2.5}[kind]
    assert not {"lam", "alpha"} & set(config)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Meow2X(layers=[0, Site(1, "attention")], neurons=[(0, 5), (Site(0, "attention"), 1)], scale=0.125),
        lambda: Meow2X(neurons=[(0, 5), ("1.attention", 1), (1, 2), ("1.attention", 0)], scale=[0.1, 0.2, 0.3, 0.4]),
        lambda: Meow2X(layers=["0.attention"], scale=0.0, mode="weights"),
        lambda: Steering(UNIT, 1, -0.5),
        lambda: ProFS({0: V, 1: V[:1]}, 0.5),
        lambda: DirectionalAblation(UNIT, [1], 0.25, mode="weights"),
        lambda: Chain([Meow2X(neurons=[("0.attention", 1)]), Steering(UNIT, 0, 1.0)]),
    ],
)
def test_a_loaded_intervention_changes_the_model_as_the_saved_one_did(tiny, tmp_path, make):
    intervention = make()
    intervention.save(tmp_path / "i")
    again = load_intervention(tmp_path / "i")
    assert again.describe() == intervention.describe()
    assert again.fingerprint == intervention.fingerprint
    untouched = logits(tiny)
    with intervention.applied(tiny):
        expected = logits(tiny)
    with again.applied(tiny):
        torch.testing.assert_close(logits(tiny), expected, rtol=0, atol=0)
    assert (expected - untouched).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format_version": 99}, "format version 99"),
        ({"kind": "magic"}, "kind 'magic'"),
        ({"config": {}}, "damaged or incomplete"),
        ({"record": [1]}, r"is damaged: record=\[1\]"),
        ({"record": {"tuned_perplexity_ratio": "low"}}, "is damaged: record='low': it must be a valid number"),
        ({"record": {"texts": {"contrast": 3}}}, "is damaged: record=3"),
        ({"record": {"texts": {"n_toxic": "many"}}}, "is damaged: record='many'"),
        ({"fitted_on": {"name": "gpt2"}}, "is damaged: fitted_on is missing"),
        ({"fitted_on": {"name": "gpt2", "fingerprint": 3}}, "is damaged: fitted_on=3"),
    ],
)
def test_files_that_cannot_be_loaded(tmp_path, change, words):
    Meow2X(layers=[0]).save(tmp_path / "m")
    path = tmp_path / "m" / "intervention.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ToxlocError, match=words):
        load_intervention(tmp_path / "m")


def test_the_records_of_the_parts_of_a_chain_are_checked(tmp_path):
    Chain([Meow2X(layers=[0]), Meow2X(layers=[1])]).save(tmp_path / "chain")
    path = tmp_path / "chain" / "intervention.json"
    saved = json.loads(path.read_text())
    saved["config"]["parts"][1]["record"] = {"tuned_kl": "low"}
    path.write_text(json.dumps(saved))
    with pytest.raises(ToxlocError, match="is damaged: record='low'"):
        load_intervention(tmp_path / "chain")


def test_a_folder_without_tensors(tmp_path):
    Meow2X(layers=[0]).save(tmp_path / "m")
    (tmp_path / "m" / "tensors.safetensors").unlink()
    with pytest.raises(ToxlocError, match="damaged or incomplete"):
        load_intervention(tmp_path / "m")


def test_an_empty_folder_and_a_damaged_file(tmp_path):
    with pytest.raises(ToxlocError, match="holds no intervention"):
        load_intervention(tmp_path)
    (tmp_path / "intervention.json").write_text("{")
    with pytest.raises(ToxlocError, match="not valid JSON"):
        load_intervention(tmp_path)
