"""Models whose weights stay on the disk: the same numbers, edits that leave the files alone, and little memory."""

import gc
import json
import shutil
from contextlib import ExitStack

import pytest
import torch
from safetensors.torch import load_file, save_file

import toxloc
from tests.conftest import TEXTS, bits, random_hf, random_model, same_bits, tokenizer
from toxloc import TRNE, ContrastSet, Meow2X, ToxlocError
from toxloc.interventions.export import export_hf
from toxloc.interventions.rank_one import RankOne
from toxloc.localization.statistics import statistics_memory
from toxloc.models import mapped as mapped_module
from toxloc.models import offload
from toxloc.models.batching import activation_bytes, batches
from toxloc.models.hooked_tree import ModuleTree
from toxloc.models.mapped import FileValues, MappedFile, map_of
from toxloc.models.weights import overwrite

PAIRS = ContrastSet(TEXTS[:3], TEXTS[2:])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "toxloc" / "offload"


def saved(folder, family="llama", **options):
    random_hf(family).save_pretrained(folder, **options)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    return saved(tmp_path / "m")


@pytest.fixture
def lm(folder):
    return toxloc.load_model(str(folder), offload=True)


def is_mapped(lm):
    return all(map_of(parameter) is not None for parameter in lm.hf.parameters())


def rank_one(lm, site=0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return TRNE(
        [RankOne(site, torch.randn(lm.at(site).d_in, generator=generator), torch.randn(16, generator=generator))]
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gemma3", "phi3"])
def test_an_offloaded_model_is_the_model(family, dtype, tmp_path):
    folder = str(saved(tmp_path / "m", family))
    plain, mapped = (toxloc.load_model(folder, device="cpu", dtype=dtype, offload=way) for way in (False, True))
    assert is_mapped(mapped) and mapped.is_offloaded and not plain.is_offloaded
    assert isinstance(mapped.hooked, ModuleTree)
    assert type(mapped.hf) is type(plain.hf)
    assert same_bits(bits(plain), mapped)
    assert mapped.fingerprint == plain.fingerprint
    assert mapped.hf.name_or_path == folder
    ids = torch.arange(1, 9)[None]
    assert torch.equal(mapped.hf(ids).logits, plain.hf(ids).logits)


def test_files_that_fit_are_used_in_place(folder, cache):
    toxloc.load_model(str(folder), offload=True)
    assert not cache.exists()


def test_a_converted_copy_is_made_once_and_again_if_a_file_changes(folder, cache, monkeypatch):
    first = toxloc.load_model(str(folder), offload=True, dtype="float16")
    assert len(list(cache.iterdir())) == 1
    with monkeypatch.context() as context:
        context.setattr(offload, "_convert", lambda *_: pytest.fail("it was converted twice"))
        assert toxloc.load_model(str(folder), offload=True, dtype="float16").fingerprint == first.fingerprint
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] *= 2
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert toxloc.load_model(str(folder), offload=True, dtype="float16").fingerprint != first.fingerprint
    assert len(list(cache.iterdir())) == 2


def test_files_in_shards_and_pickled_files(tmp_path, cache):
    sharded = saved(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    first = toxloc.load_model(str(sharded), offload=True)
    assert is_mapped(first) and not cache.exists()
    pickled = saved(tmp_path / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    second = toxloc.load_model(str(pickled), offload=True)
    assert is_mapped(second) and cache.exists()
    assert first.fingerprint == second.fingerprint


@pytest.mark.parametrize("make", [rank_one, lambda lm: Meow2X(neurons=[(0, 3), (1, 5)], scale=0.0, mode="weights")])
def test_an_edit_is_reverted_bit_for_bit_and_the_file_does_not_change(lm, folder, make):
    before, content = bits(lm), (folder / "model.safetensors").read_bytes()
    edit = make(lm)
    ids = torch.arange(1, 9)[None]
    logits = lm.hf(ids).logits
    with edit.applied(lm):
        assert not same_bits(before, lm)
        assert is_mapped(lm)
        changed = lm.hf(ids).logits
        assert not torch.equal(changed, logits)
        torch.testing.assert_close(lm.forward(ids, torch.ones_like(ids)), changed)
    assert same_bits(before, lm)
    assert (folder / "model.safetensors").read_bytes() == content
    assert FileValues.of(lm.W_out(0)) is not None  # nothing of it is kept in memory


def test_stacked_edits_and_changes_by_hand_are_restored(lm):
    with torch.no_grad():
        lm.W_out(0)[3] = 7.0
    before = bits(lm)
    with rank_one(lm).applied(lm):
        once = bits(lm)
        with rank_one(lm, seed=1).applied(lm):
            assert not same_bits(once, lm)
        assert same_bits(once, lm)
    assert same_bits(before, lm)
    assert (lm.W_out(0)[3] == 7).all()


def test_restoring_a_weight_leaves_its_neighbours_on_the_same_page(tmp_path):
    values = {name: torch.randn(7, 5) for name in "abc"} | {"large": torch.randn(300, 100)}
    save_file(values, tmp_path / "m.safetensors")
    mapped = MappedFile.of((tmp_path / "m.safetensors").open("rb"))
    live = {name: mapped.tensor(name) for name in values}
    assert all(torch.equal(live[name], values[name]) for name in values)
    with ExitStack() as kept:
        for name in "ac":
            overwrite(live[name], torch.zeros(7, 5), kept)
        for name in ("b", "large"):
            with ExitStack() as stack:
                overwrite(live[name].T, torch.ones(live[name].T.shape), stack)
                assert (live[name] == 1).all()
            assert torch.equal(live[name], values[name])
            assert not live["a"].any() and not live["c"].any()
    assert all(torch.equal(live[name], values[name]) for name in values)


def test_parts_of_a_weight_with_gaps_are_restored_from_a_copy(tmp_path):
    values = torch.randn(50, 40)
    save_file({"w": values}, tmp_path / "m.safetensors")
    live = MappedFile.of((tmp_path / "m.safetensors").open("rb")).tensor("w")
    assert FileValues.of(live[:, 3:9]) is None
    with ExitStack() as stack:
        overwrite(live[:, 3:9], torch.zeros(50, 6), stack)
        assert not live[:, 3:9].any()
    assert torch.equal(live, values)


def test_a_map_is_closed_with_its_last_tensor(tmp_path):
    save_file({"w": torch.ones(3)}, tmp_path / "m.safetensors")
    before = len(mapped_module._MAPS)
    live = MappedFile.of((tmp_path / "m.safetensors").open("rb")).tensor("w")
    gc.collect()
    assert len(mapped_module._MAPS) == before + 1
    assert live.sum() == 3
    del live
    gc.collect()
    assert len(mapped_module._MAPS) == before


def test_localization_and_fits_are_those_of_the_model_in_memory(folder):
    plain = toxloc.load_model(str(folder), device="cpu", hooks="modules")
    mapped = toxloc.load_model(str(folder), offload=True)
    one, other = (toxloc.localize(lm, PAIRS, draws=0) for lm in (plain, mapped))
    for name in one.scores:
        assert (one.neuron_scores(name) == other.neuron_scores(name)).all()
    edits = [TRNE.fit(lm, PAIRS, norm=0.1) for lm in (plain, mapped)]
    for a, b in zip(edits[0].edits, edits[1].edits, strict=True):
        assert torch.equal(a.u, b.u) and torch.equal(a.v, b.v)


def test_a_copy_has_its_own_edits_and_is_offloaded_too(lm):
    before = bits(lm)
    copied = lm.copy()
    assert copied.is_offloaded and copied.fingerprint == lm.fingerprint
    with rank_one(lm).applied(lm):
        assert same_bits(before, copied)
        assert lm.copy().fingerprint == lm.fingerprint
    with rank_one(copied).applied(copied):
        assert same_bits(before, lm)


def test_an_edited_model_is_exported(lm, tmp_path):
    with rank_one(lm).applied(lm):
        export_hf(lm, tmp_path / "out")
        expected = bits(lm)
    assert same_bits(expected, toxloc.load_model(str(tmp_path / "out"), device="cpu"))


def test_batches_for_gradients_are_small_if_the_model_is_offloaded(lm, monkeypatch):
    per_token = activation_bytes(lm)
    assert per_token == 4 * (16 * 2 * 16 + 5 * 2 * 48)
    monkeypatch.setitem(toxloc.models.batching.ACTIVATIONS_PER_BATCH, "offloaded", 70 * per_token)
    sizes = [batch.ids.numel() for batch in batches(lm, ["word " * 30] * 8, gradients=True)]
    assert max(sizes) <= 70 and len(sizes) > 1
    assert len(list(batches(lm, ["word " * 30] * 8))) == 1


def test_the_activations_of_a_mixture_are_those_of_the_experts_that_a_token_is_routed_to():
    lm = random_model("mixtral", num_local_experts=6, num_experts_per_tok=3)
    assert activation_bytes(lm) == 4 * (16 * 2 * lm.d_model + 5 * 2 * 3 * lm.at("0.expert.0").d_in)


def test_statistics_take_less_memory_if_the_model_is_offloaded(lm):
    assert statistics_memory(lm, None) == 1 << 30
    assert statistics_memory(lm, 5) == 5
    assert statistics_memory(random_model(), None) == 4 << 30


def refused(folder, **options):
    with pytest.raises(ToxlocError) as caught:
        toxloc.load_model(str(folder), **{"offload": True, **options})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_offloaded_ends_in_a_sentence(folder, monkeypatch):
    assert "runs on the CPU, not on 'cuda'; leave one of the two out" in refused(folder, device="cuda")
    assert "cannot be both offloaded and quantized" in refused(folder, quantize="torchao-int8")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    assert "Converting m to files that can stay on the disk needs" in refused(folder, dtype="bfloat16")


def test_damaged_folders_end_in_a_sentence_and_leave_no_copy(folder, cache):
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    save_file({**weights, name: weights[name].fill_(torch.nan)}, folder / "model.safetensors", {"format": "pt"})
    assert f"The weight {name} of m holds" in refused(folder)
    del weights[name]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert f"lacks the weights {name}" in refused(folder)
    assert not cache.exists()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    assert "are quantized already, with gptq; leave offload=True out" in refused(folder)
