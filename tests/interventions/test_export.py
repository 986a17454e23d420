import json
import sys

import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import toxloc
from tests.conftest import TEXTS, bits, random_hf, random_model, same_bits, tokenizer
from toxloc import TRNE, Chain, Meow2X, ProFS, Steering, ToxlocError
from toxloc.interventions.export import check_fitted_on, export_hf, export_peft
from toxloc.interventions.methods.ablation import DirectionalAblation
from toxloc.interventions.rank_one import RankOne
from toxloc.models.sites import Site

FAMILIES = ["gpt2", "llama", "opt", "gpt_neox", "gemma2"]


def rank_ones(lm, sites, size=0.5):
    torch.manual_seed(2)
    return TRNE([RankOne(site, size * torch.randn(lm.at(site).d_in), size * torch.randn(lm.d_model)) for site in sites])


def projection(lm):
    torch.manual_seed(1)
    return ProFS({layer: torch.linalg.qr(torch.randn(lm.d_model, 2))[0].T for layer in range(lm.n_layers)})


def in_hooks_alone(lm):
    return Steering(torch.ones(lm.d_model), layer=1, strength=1.0)


EDITS = {
    "trne": (lambda lm: rank_ones(lm, [0, 1]), 1),
    "trne twice in a layer": (lambda lm: Chain([rank_ones(lm, [1, 1]), rank_ones(lm, [0])]), 2),
    "meow2x": (lambda lm: Meow2X(neurons=[(0, 3), (1, 0), (1, 5), (1, 7)], scale=[0.0, 0.5, 0.2, 0.7]), 3),
    "profs": (projection, 2),
    "chain": (lambda lm: Chain([rank_ones(lm, [0]), Meow2X(neurons=[(0, 2), (1, 2)], scale=0.0)]), 2),
}


def inputs():
    return tokenizer()(TEXTS[2], return_tensors="pt")


@torch.no_grad()
def logits(hf):
    return hf(**inputs()).logits


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "dtype"),
    [*((family, torch.float32) for family in (*FAMILIES, "phi3")), ("gpt2", torch.bfloat16), ("llama", torch.float16)],
)
def test_a_folder_is_the_edited_model(family, dtype, tmp_path):
    lm = random_model(family, dtype=dtype)
    before = bits(lm)
    with Meow2X(layers=[1], neurons=[(0, 3)], scale=0.25, mode="weights").applied(lm), rank_ones(lm, [0]).applied(lm):
        export_hf(lm, tmp_path / "out")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert same_bits(again.parameters(), lm)
        assert not same_bits(before, lm)
        if (
            dtype == torch.float32
        ):  # random_hf also rounds the frequencies of the positions, which loading from disk does not
            assert torch.equal(logits(again), logits(lm.hf))
    assert same_bits(before, lm)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(TEXTS)["input_ids"] == lm.tokenizer(TEXTS)["input_ids"]
    assert {"README.md", "config.json", "generation_config.json", "model.safetensors"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o644}


def test_a_folder_loads_as_a_model_of_toxloc(tiny, tmp_path):
    with rank_ones(tiny, [0]).applied(tiny):
        export_hf(tiny, tmp_path / "out")
        assert same_bits(bits(toxloc.load_model(str(tmp_path / "out"))), tiny)


@pytest.mark.parametrize(
    ("family", "name"),
    [*(("gpt2", name) for name in EDITS), *((family, name) for family in FAMILIES[1:] for name in ("trne", "meow2x"))],
)
def test_an_adapter_is_exactly_the_edit(family, name, tmp_path):
    lm, base = random_model(family), random_hf(family)
    make, rank = EDITS[name]
    edit, before = make(lm), bits(lm)
    modules = [type(module) for module in lm.hf.modules()]
    export_peft(edit, lm, tmp_path / "out")
    assert same_bits(before, lm)
    assert [type(module) for module in lm.hf.modules()] == modules
    with edit.applied(lm):
        wanted = logits(lm.hf)
    unedited = logits(base)
    assert (wanted - unedited).abs().max() > 1e-3
    adapted = PeftModel.from_pretrained(base, tmp_path / "out")
    close(logits(adapted), wanted)
    assert (logits(adapted) - unedited).abs().max() > 1e-3
    assert adapted.peft_config["default"].r == adapted.peft_config["default"].lora_alpha == rank
    assert [
        module.get_base_layer().weight.shape for module in base.modules() if isinstance(module, BaseTunerLayer)
    ] == [lm.down_projection(i).weight.shape for i in range(2)]
    close(logits(adapted.merge_and_unload()), wanted)


def test_an_ablation_of_a_model_without_biases_is_an_adapter_of_rank_one(tmp_path):
    lm, base = random_model("llama"), random_hf("llama")
    edit = DirectionalAblation(torch.nn.functional.normalize(torch.randn(lm.d_model), dim=0), [0, 1], mode="weights")
    export_peft(edit, lm, tmp_path / "out")
    with edit.applied(lm):
        wanted = logits(lm.hf)
    assert (wanted - logits(base)).abs().max() > 1e-3
    adapted = PeftModel.from_pretrained(base, tmp_path / "out")
    close(logits(adapted), wanted)
    assert adapted.peft_config["default"].r == 1


def test_only_edited_layers_are_targeted_also_in_a_deep_model(tmp_path):
    lm, base = random_model("llama", num_hidden_layers=24), random_hf("llama", num_hidden_layers=24)
    layers = [i for i in range(24) if i not in (3, 17)]
    export_peft(rank_ones(lm, layers, size=0.05), lm, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == [f"model.layers.{i}.mlp.down_proj" for i in layers]
    PeftModel.from_pretrained(base, tmp_path / "out")
    assert [name for name, module in base.named_modules() if isinstance(module, BaseTunerLayer)] == config[
        "target_modules"
    ]


def test_a_model_in_16_bits_gets_the_change_before_rounding(tmp_path):
    lm = random_model("llama", dtype=torch.bfloat16)
    edit = rank_ones(lm, [0, 1], size=1e-3)
    export_peft(edit, lm, tmp_path / "trne")
    export_peft(projection(lm), lm, tmp_path / "profs")
    adapter = load_file(tmp_path / "trne" / "adapter_model.safetensors")
    for change in edit.edits:
        prefix = f"base_model.model.model.layers.{change.layer}.mlp.down_proj"
        A, B = (adapter[f"{prefix}.lora_{part}.weight"] for part in "AB")
        close((B @ A).T, torch.outer(change.u, change.v))
    assert json.loads((tmp_path / "profs" / "adapter_config.json").read_text())["r"] == 2


def test_other_applied_interventions_are_ignored_and_stay_applied(tiny, tmp_path):
    edit = rank_ones(tiny, [0])
    export_peft(edit, tiny, tmp_path / "alone")
    with Meow2X(layers=[1], mode="weights").applied(tiny) as meow, edit.applied(tiny):
        before = bits(tiny)
        export_peft(edit, tiny, tmp_path / "beside")
        assert tiny.interventions == [meow, edit]
        assert same_bits(before, tiny)
    alone, beside = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("alone", "beside"))
    assert all(torch.equal(alone[name], beside[name]) for name in alone)


@pytest.mark.parametrize(
    ("family", "make", "words"),
    [
        ("opt", lambda lm: Meow2X(layers=[0]), r"changes model.decoder.layers.0.fc2.bias; use export_hf"),
        ("gemma2", lambda lm: Meow2X(layers=[1]), "changes model.layers.1.post_feedforward_layernorm.weight"),
        ("llama", lambda lm: Meow2X(layers=[0]), r"W of layer 0 by a matrix of rank 16: .* than the matrix \[48, 16\]"),
        ("gpt2", lambda lm: Meow2X(layers=[0], scale=1.0), "changes no weight of random-gpt2"),
        ("gpt2", in_hooks_alone, "has no form in the weights"),
        ("gpt2", lambda lm: Meow2X(layers=[2]), "There is no layer 2 in random-gpt2"),
    ],
)
def test_what_an_adapter_cannot_hold(family, make, words, tmp_path):
    lm = random_model(family)
    before = bits(lm)
    with pytest.raises(ToxlocError, match=words):
        export_peft(make(lm), lm, tmp_path / "out")
    assert same_bits(before, lm)
    assert list(tmp_path.iterdir()) == []


def test_without_peft_the_command_is_named(tiny, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ToxlocError, match=r"pip install 'peft>=0\.21,<1'"):
        export_peft(rank_ones(tiny, [0]), tiny, tmp_path / "out")


def test_a_model_with_hooks_is_not_saved(tiny, tmp_path):
    meow = Meow2X(layers=[0])
    for hooked in (meow, Chain([rank_ones(tiny, [0]), meow])):
        with (
            hooked.applied(tiny),
            pytest.raises(
                ToxlocError,
                match=r"mode='hooks'\)\]?\)?\. Revert .*meow2x, .*"
                r"Apply \.baked\(\) instead",
            ),
        ):
            export_hf(tiny, tmp_path / "out")
    with in_hooks_alone(tiny).applied(tiny), pytest.raises(ToxlocError, match=r"Steering(?!.*baked)"):
        export_hf(tiny, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_empty_is_kept_unless_overwrite_is_on(tiny, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for write in (
        lambda **k: export_hf(tiny, tmp_path, **k),
        lambda **k: export_peft(rank_ones(tiny, [0]), tiny, tmp_path, **k),
    ):
        with pytest.raises(ToxlocError, match="is not empty"):
            write()
        assert (tmp_path / "notes.txt").read_text() == "mine"
    export_hf(tiny, tmp_path, overwrite=True)
    assert not (tmp_path / "notes.txt").exists()


def test_an_intervention_that_was_fitted_on_another_model_is_refused(tiny):
    other = random_model(seed=1)
    by_hand, edit = rank_ones(tiny, [0]), rank_ones(tiny, [0])
    edit.note_fit(tiny, {})
    for intervention in (by_hand, Chain([by_hand]), edit, Chain([edit, by_hand])):
        check_fitted_on(intervention, tiny)
    for intervention in (edit, Chain([by_hand, edit])):
        with pytest.raises(ToxlocError, match=f"{tiny.fingerprint}.*this is random-gpt2 .{other.fingerprint}"):
            check_fitted_on(intervention, other)


# Edits of W_O, alone and together with W_out

ATTENTION = {
    "W_O": (lambda lm: rank_ones(lm, ["0.attention", "1.attention"]), 1),
    "W_out and W_O": (lambda lm: rank_ones(lm, [0, "0.attention", "1.attention", "1.attention"]), 2),
    "a head": (lambda lm: Meow2X(neurons=[("0.attention", 1)], scale=0.0), 4),  # of width 4
    "a chain": (lambda lm: Chain([rank_ones(lm, ["1.attention"]), Meow2X(neurons=[(0, 2)], scale=0.0)]), 1),
}


@pytest.mark.parametrize(
    ("family", "name"),
    [
        *(("gpt2", name) for name in ATTENTION),
        *((family, "W_out and W_O") for family in (*FAMILIES[1:], "olmo2")),
        ("llama", "a head"),
    ],
)
def test_an_adapter_of_W_O_is_exactly_the_edit(family, name, tmp_path):
    heads = {"n_head": 4} if family == "gpt2" else {"num_attention_heads": 4}
    if family == "llama":
        heads["head_dim"] = 4
    lm, base = random_model(family, **heads), random_hf(family, **heads)
    make, rank = ATTENTION[name]
    edit, before = make(lm), bits(lm)
    export_peft(edit, lm, tmp_path / "out")
    assert same_bits(before, lm)
    with edit.applied(lm):
        wanted = logits(lm.hf)
    unedited = logits(base)
    assert (wanted - unedited).abs().max() > 1e-3
    adapted = PeftModel.from_pretrained(base, tmp_path / "out")
    close(logits(adapted), wanted)
    assert adapted.peft_config["default"].r == adapted.peft_config["default"].lora_alpha == rank
    close(logits(adapted.merge_and_unload()), wanted)


def test_an_adapter_targets_the_edited_maps_by_their_full_names(tmp_path):
    lm = random_model("llama")
    export_peft(rank_ones(lm, [0, "1.attention"]), lm, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["model.layers.0.mlp.down_proj", "model.layers.1.self_attn.o_proj"]


@pytest.mark.parametrize(
    ("family", "dtype"), [("gpt2", torch.float32), ("gemma2", torch.float32), ("llama", torch.bfloat16)]
)
@pytest.mark.parametrize("name", ["W_O", "W_out and W_O", "a head"])
def test_a_folder_holds_edits_of_attentions(family, dtype, name, tmp_path):
    lm = random_model(family, dtype=dtype)
    before = bits(lm)
    with ATTENTION[name][0](lm).baked().applied(lm):
        export_hf(lm, tmp_path / "out")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert same_bits(again.parameters(), lm)
        assert not same_bits(before, lm)
        if dtype == torch.float32:
            assert torch.equal(logits(again), logits(lm.hf))
    assert same_bits(before, lm)


def test_an_adapter_cannot_hold_a_whole_attention_with_its_bias_or_norm(tmp_path):
    for family, words in (
        ("opt", r"changes model.decoder.layers.0.self_attn.out_proj.bias"),
        ("olmo2", "changes model.layers.0.post_attention_layernorm.weight"),
        ("llama", r"changes W of layer 0, attention by a matrix of rank 16"),
    ):
        with pytest.raises(ToxlocError, match=words):
            export_peft(Meow2X(layers=[Site(0, "attention")]), random_model(family), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
