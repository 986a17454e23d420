"""What a trace finds in models of each family: blocks, writing maps, norms, and how logits are computed."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.hrm_text import HrmTextConfig

from benchmarks.families import DENSE, EXPERTS, random_hf, small_config
from toxloc import ToxlocError
from toxloc.models.banks import layout_of
from toxloc.models.site_view import norm_offset
from toxloc.models.structure import find_structure, shape_of, soft_cap_of

GATED = ("mlp.gate_proj", "mlp.up_proj")
LLAMA = ("model.layers", GATED, "mlp.down_proj", "self_attn.o_proj", "model.norm", None, None, 0.0)
NORMED = (*LLAMA[:5], "post_feedforward_layernorm", "post_attention_layernorm", 0.0)
GEMMA = (*NORMED[:7], 1.0)
GPT2 = ("transformer.h", ("mlp.c_fc",), "mlp.c_proj", "attn.c_proj", "transformer.ln_f", None, None, 0.0)
BLOOM = (
    "transformer.h",
    ("mlp.dense_h_to_4h",),
    "mlp.dense_4h_to_h",
    "self_attention.dense",
    "transformer.ln_f",
    None,
    None,
    0.0,
)
# The list of blocks; in a block the readers, W_out and W_O; the final norm; in a block the norms after W_out and W_O,
# and their offset.
KNOWN = {
    "gpt2": GPT2,
    "gpt_neo": (*GPT2[:3], "attn.attention.out_proj", *GPT2[4:]),
    "gpt_neox": (
        "gpt_neox.layers",
        ("mlp.dense_h_to_4h",),
        "mlp.dense_4h_to_h",
        "attention.dense",
        "gpt_neox.final_layer_norm",
        None,
        None,
        0.0,
    ),
    "opt": (
        "model.decoder.layers",
        ("fc1",),
        "fc2",
        "self_attn.out_proj",
        "model.decoder.final_layer_norm",
        None,
        None,
        0.0,
    ),
    "bloom": BLOOM,
    "falcon": BLOOM,
    "phi": ("model.layers", ("mlp.fc1",), "mlp.fc2", "self_attn.dense", "model.final_layernorm", None, None, 0.0),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3"), LLAMA),
    **dict.fromkeys(("gemma2", "gemma3_text"), GEMMA),
    "phi3": ("model.layers", ("mlp.gate_up_proj",), *LLAMA[2:]),
    "olmo2": NORMED,
}


def test_the_literal_table_has_the_dense_families():
    assert set(KNOWN) == set(DENSE)


@pytest.mark.parametrize("family", sorted(KNOWN))
def test_the_structure_of_a_dense_family_is_the_known_one(family):
    blocks, readers, down, attention, final_norm, post_norm, attention_norm, offset = KNOWN[family]
    hf = random_hf(family)
    structure = find_structure(hf)
    assert structure.blocks == (f"{blocks}.0", f"{blocks}.1")
    assert structure.final_norm == final_norm
    for block, writers in zip(structure.blocks, structure.writers, strict=True):

        def full(path, block=block):
            return None if path is None else f"{block}.{path}"

        by_part = {writer.part: writer for writer in writers}
        assert set(by_part) == {"mlp", "attention"} and len(writers) == 2
        assert by_part["mlp"].readers == tuple(map(full, readers))
        assert (by_part["mlp"].path, by_part["mlp"].norm) == (full(down), full(post_norm))
        assert (by_part["attention"].path, by_part["attention"].norm) == (full(attention), full(attention_norm))
        assert by_part["attention"].readers == ()
        for writer in writers:
            assert writer.norm is None or norm_offset(hf.get_submodule(writer.norm)) == offset


EXPECTED = {  # the parts of each block
    "mixtral": [{"attention", "expert"}] * 2,
    "qwen2_moe": [{"attention", "expert", "shared_expert"}] * 2,
    "deepseek_v3": [{"attention", "mlp"}, {"attention", "expert", "shared_expert"}],
    "gpt_oss": [{"attention", "expert"}] * 2,
    "llama4_text": [{"attention", "mlp"}, {"attention", "expert", "shared_expert"}],
    "jetmoe": [{"expert"}] * 2,
    "granitemoehybrid": [{"mixer", "expert", "shared_expert"}, {"attention", "expert", "shared_expert"}],
    "qwen3_5_text": [{"mixer", "mlp"}, {"attention", "mlp"}],
    "lfm2": [{"mixer", "mlp"}, {"attention", "mlp"}],
    "jamba": [{"mixer", "mlp"}, {"attention", "expert"}],
    "falcon_h1": [{"mixer", "attention", "mlp"}] * 2,
    "mamba": [{"mixer"}] * 2,
    "zamba2": [{"mixer"}] * 3,
    "rwkv": [{"mixer", "mlp"}] * 2,
    "afmoe": [{"attention", "mlp"}, {"attention", "expert", "shared_expert"}],
}


@pytest.mark.parametrize("family", sorted(EXPECTED))
def test_mixtures_and_hybrids_have_the_parts_of_their_design(family):
    hf = random_hf(family)
    structure = find_structure(hf)
    assert [{writer.part for writer in writers} for writers in structure.writers] == EXPECTED[family]
    width = hf.config.hidden_size
    for writer in (writer for writers in structure.writers for writer in writers):
        module = hf.get_submodule(writer.path)
        assert layout_of(module) is not None if writer.part == "expert" else shape_of(module)[1] == width
        assert writer.path.startswith(writer.container)


WHOLE = (*DENSE, *EXPERTS[:5], "qwen3_5_text", "lfm2", "jamba", "mamba", "afmoe")


@pytest.mark.parametrize("family", WHOLE)
def test_a_block_adds_to_the_residual_stream_exactly_what_its_writers_return(family):
    """All families but JetMoE, whose attention is not read, and Falcon-H1, which multiplies what its maps return."""
    hf, seen = random_hf(family), {}
    structure = find_structure(hf)

    def keep(path):
        def hook(module, args, kwargs, out):
            read = args[0] if args else next(iter(kwargs.values()))
            seen[path] = read, (out[0] if isinstance(out, tuple) else out).clone()

        return hook

    ends = [
        {writer.norm or (writer.container if "expert" in writer.part else writer.path) for writer in writers}
        for writers in structure.writers
    ]
    if family == "afmoe":  # the sum of all experts is normed, so the shared expert is in it
        ends[1].discard("model.layers.1.mlp")
    for path in {*structure.blocks, *(path for paths in ends for path in paths)}:
        hf.get_submodule(path).register_forward_hook(keep(path), with_kwargs=True)
    ids = torch.arange(1, 11)[None] * 11
    with torch.no_grad():
        hf(input_ids=ids, use_cache=False)
    for block, paths in zip(structure.blocks, ends, strict=True):
        read, returned = seen[block]
        written = sum(seen[path][1].view_as(read) for path in paths)
        torch.testing.assert_close(written, returned - read, rtol=1e-3, atol=1e-4 * float(returned.abs().max()))


SCALES = {"cohere": 0.25, "granite": 0.25, "cohere2": 0.0625, "nanochat": 1.0, "recurrent_gemma": 1.0}
CAPS = {"gemma2": 30.0, "recurrent_gemma": 30.0, "vaultgemma": 30.0, "nanochat": 15.0}


@pytest.mark.parametrize("family", ["llama", "opt", "gemma2", "modernbert-decoder", "gemma3", "qwen3_5", *SCALES])
def test_the_logits_are_those_of_the_decoder_the_head_the_scale_and_the_cap(family):
    hf = random_hf(family)
    structure = find_structure(hf)
    scale = SCALES.get(family, 1.0)
    assert structure.logit_scale == (1.0 if scale == 1 else pytest.approx(scale, rel=1e-5))
    assert structure.soft_cap == soft_cap_of(hf) == CAPS.get(family)
    assert structure.head == {"modernbert-decoder": "lm_head"}.get(family)
    ids = torch.arange(1, 11)[None] * 11
    with torch.no_grad():
        hidden = hf.get_submodule(structure.decoder)(input_ids=ids, use_cache=False)[0]
        if structure.head is not None:
            hidden = hf.get_submodule(structure.head)(hidden)
        logits = structure.logit_scale * hf.get_output_embeddings()(hidden)
        if structure.soft_cap is not None:
            logits = structure.soft_cap * torch.tanh(logits / structure.soft_cap)
        torch.testing.assert_close(logits, hf(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "cohere", "granite", "gemma2"])
def test_scale_and_cap_are_those_of_a_model_in_16_bits(family):
    structure = find_structure(random_hf(family, dtype=torch.bfloat16))
    scale = SCALES.get(family, 1.0)
    assert structure.logit_scale == (1.0 if scale == 1 else pytest.approx(scale, rel=0.01))
    assert structure.soft_cap == CAPS.get(family)


@pytest.mark.parametrize(("value", "cap"), [(None, None), (0.0, None), (12.5, 12.5)])
def test_a_soft_cap_of_zero_is_none(value, cap):
    assert soft_cap_of(random_hf("gemma2", final_logit_softcapping=value)) == cap


def test_an_opt_that_norms_inside_its_blocks_has_no_final_norm():
    assert find_structure(random_hf("opt", do_layer_norm_before=False)).final_norm is None


@pytest.mark.parametrize("n_layers", [1, 3])  # the tower of this model has a single block
def test_the_blocks_of_a_multimodal_model_are_those_of_its_text_decoder(n_layers):
    hf = random_hf("gemma3", num_hidden_layers=n_layers, layer_types=["full_attention"] * n_layers)
    assert find_structure(hf).blocks == tuple(f"model.language_model.layers.{i}" for i in range(n_layers))


def test_the_list_of_blocks_is_the_nearest_to_the_root():
    hf = random_hf("llama")
    hf.model.adapters = nn.Module()
    hf.model.adapters.all = nn.ModuleList([nn.Identity(), nn.Identity()])
    assert find_structure(hf).blocks == ("model.layers.0", "model.layers.1")


# Refusals


def test_a_model_whose_blocks_run_several_times_is_refused():
    hf = random_hf("llama")
    hf.model.layers = nn.ModuleList([hf.model.layers[0]] * 2)
    with pytest.raises(ToxlocError, match=r"first block of this llama model runs 2 times in one pass; .* run once"):
        find_structure(hf)


def test_a_recurrent_model_is_refused():
    sizes = small_config("llama").to_dict()
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "head_dim", "vocab_size")
    hf = AutoModelForCausalLM.from_config(HrmTextConfig(num_hidden_layers=1, **{name: sizes[name] for name in names}))
    with pytest.raises(ToxlocError, match=r"This hrm_text model has no list of 8 blocks .*blocks are in a list"):
        find_structure(hf)


def test_blocks_without_a_writing_map_are_refused():
    hf = random_hf("llama")
    for block in hf.model.layers:
        block.mlp, block.self_attn = nn.Identity(), NoAttention()
    with pytest.raises(ToxlocError, match="No linear map was found in the blocks of this llama model that writes"):
        find_structure(hf)


class NoAttention(nn.Module):
    def forward(self, hidden_states, **kwargs):
        return hidden_states, None


@pytest.mark.parametrize(
    "break_",
    [
        lambda logits: logits + torch.arange(logits.shape[-1]),
        lambda logits: logits.log_softmax(-1),
        lambda logits: logits**2,
        lambda logits: logits.flip(-1),
        lambda logits: logits + 0.01 * logits.abs().max() * torch.arange(logits.shape[-1]).remainder(2),
    ],
)
@pytest.mark.parametrize("size", [1.0, 1e-5])
def test_logits_that_are_not_those_of_the_unembedding_are_refused(break_, size, monkeypatch):
    hf = random_hf("llama")
    hf.get_output_embeddings().weight.data *= size
    forward = hf.forward

    def broken(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = break_(out.logits)
        return out

    monkeypatch.setattr(hf, "forward", broken)
    with pytest.raises(ToxlocError, match="logits of this llama model are not its unembedding of the decoder's last"):
        find_structure(hf)


def test_a_model_without_one_of_its_maps_is_read_as_far_as_it_goes():
    hf = random_hf("llama")
    hf.model.layers[1].mlp = nn.Identity()
    assert [[writer.part for writer in writers] for writers in find_structure(hf).writers] == [
        ["attention", "mlp"],
        ["attention"],
    ]
