import json
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import toxloc
from tests.conftest import TEXTS, bits, random_hf, random_model, same_bits, tokenizer
from toxloc import TRNE, Chain, Meow2X, ProFS, Steering, ToxlocError, load_intervention
from toxloc.interventions.export import check_fitted_on, export_hf, export_peft
from toxloc.interventions.methods.trne import RankOne
from toxloc.interventions.model_card import effect_in_run
from toxloc.support.files import write_json

FAMILIES = ["gpt2", "llama", "opt", "gpt_neox", "gemma2"]


def rank_ones(lm, layers, size=0.5):
    torch.manual_seed(2)
    return TRNE([RankOne(i, size * torch.randn(lm.d_mlp), size * torch.randn(lm.d_model)) for i in layers])


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


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("family", "dtype"), [
    *((family, torch.float32) for family in (*FAMILIES, "phi3")), ("gpt2", torch.bfloat16), ("llama", torch.float16),
])
def test_a_folder_is_the_edited_model(family, dtype, tmp_path):
    lm = random_model(family, dtype=dtype)
    before = bits(lm)
    with Meow2X(layers=[1], neurons=[(0, 3)], scale=0.25, mode="weights").applied(lm), rank_ones(lm, [0]).applied(lm):
        export_hf(lm, tmp_path / "out")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert same_bits(again.parameters(), lm)
        assert not same_bits(before, lm)
        if dtype == torch.float32:  # random_hf also rounds the positions' frequencies, which no model on disk does
            assert torch.equal(logits(again), logits(lm.hf))
    assert same_bits(before, lm)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(TEXTS)["input_ids"] == lm.tokenizer(TEXTS)["input_ids"]
    assert {"README.md", "config.json", "generation_config.json", "model.safetensors"} <= {
        path.name for path in (tmp_path / "out").iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o644}


def test_a_folder_loads_as_a_model_of_toxloc(tiny, tmp_path):
    with rank_ones(tiny, [0]).applied(tiny):
        export_hf(tiny, tmp_path / "out")
        assert same_bits(bits(toxloc.load_model(str(tmp_path / "out"))), tiny)


@pytest.mark.parametrize(("family", "name"), [
    *(("gpt2", name) for name in EDITS), *((family, name) for family in FAMILIES[1:] for name in ("trne", "meow2x")),
])
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
    assert [module.get_base_layer().weight.shape for module in base.modules() if isinstance(module, BaseTunerLayer)] \
        == [lm.down_projection(i).weight.shape for i in range(2)]
    close(logits(adapted.merge_and_unload()), wanted)


def test_only_edited_layers_are_targeted_also_in_a_deep_model(tmp_path):
    lm, base = random_model("llama", num_hidden_layers=24), random_hf("llama", num_hidden_layers=24)
    layers = [i for i in range(24) if i not in (3, 17)]
    export_peft(rank_ones(lm, layers, size=0.05), lm, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == [f"model.layers.{i}.mlp.down_proj" for i in layers]
    PeftModel.from_pretrained(base, tmp_path / "out")
    assert [name for name, module in base.named_modules() if isinstance(module, BaseTunerLayer)] \
        == config["target_modules"]


def test_a_model_in_16_bits_gets_the_change_before_rounding(tmp_path):
    lm = random_model("llama", dtype=torch.bfloat16)
    edit = rank_ones(lm, [0, 1], size=1e-3)
    export_peft(edit, lm, tmp_path / "trne")
    export_peft(projection(lm), lm, tmp_path / "profs")
    found = load_file(tmp_path / "trne" / "adapter_model.safetensors")
    for one in edit.edits:
        prefix = f"base_model.model.model.layers.{one.layer}.mlp.down_proj"
        A, B = (found[f"{prefix}.lora_{part}.weight"] for part in "AB")
        close((B @ A).T, torch.outer(one.u, one.v))
    assert json.loads((tmp_path / "profs" / "adapter_config.json").read_text())["r"] == 2


def test_other_applied_interventions_play_no_part_and_stay(tiny, tmp_path):
    edit = rank_ones(tiny, [0])
    export_peft(edit, tiny, tmp_path / "alone")
    with Meow2X(layers=[1], mode="weights").applied(tiny) as meow, edit.applied(tiny):
        before = bits(tiny)
        export_peft(edit, tiny, tmp_path / "beside")
        assert tiny.applied == [meow, edit]
        assert same_bits(before, tiny)
    alone, beside = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("alone", "beside"))
    assert all(torch.equal(alone[name], beside[name]) for name in alone)


@pytest.mark.parametrize(("family", "make", "words"), [
    ("opt", lambda lm: Meow2X(layers=[0]), r"changes model.decoder.layers.0.fc2.bias; use export_hf"),
    ("gemma2", lambda lm: Meow2X(layers=[1]), "changes model.layers.1.post_feedforward_layernorm.weight"),
    ("llama", lambda lm: Meow2X(layers=[0]), r"changes W of layer 0 by a matrix of rank 16: an adapter would be larger than the matrix \[48, 16\]"),
    ("gpt2", lambda lm: Meow2X(layers=[0], scale=1.0), "changes no weight of random-gpt2"),
    ("gpt2", in_hooks_alone, "lives in hooks and has no form in the weights"),
    ("gpt2", lambda lm: Meow2X(layers=[2]), "There is no layer 2 in random-gpt2"),
])
def test_what_an_adapter_cannot_hold(family, make, words, tmp_path):
    lm = random_model(family)
    before = bits(lm)
    with pytest.raises(ToxlocError, match=words):
        export_peft(make(lm), lm, tmp_path / "out")
    assert same_bits(before, lm)
    assert list(tmp_path.iterdir()) == []


def test_without_peft_the_command_is_named(tiny, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ToxlocError, match=r"pip install 'peft>=0\.13,<1'"):
        export_peft(rank_ones(tiny, [0]), tiny, tmp_path / "out")


def test_hooks_are_not_saved_in_silence(tiny, tmp_path):
    meow = Meow2X(layers=[0])
    for hooked in (meow, Chain([rank_ones(tiny, [0]), meow])):
        with hooked.applied(tiny), pytest.raises(ToxlocError, match=r"mode='hooks'\)\]?\)?\. Revert it .*meow2x, .*"
                                                                    r"Apply \.baked\(\) instead"):
            export_hf(tiny, tmp_path / "out")
    with in_hooks_alone(tiny).applied(tiny), pytest.raises(ToxlocError, match=r"Steering(?!.*baked)"):
        export_hf(tiny, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_kept_unless_asked(tiny, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for write in (lambda **k: export_hf(tiny, tmp_path, **k), lambda **k: export_peft(rank_ones(tiny, [0]), tiny,
                                                                                      tmp_path, **k)):
        with pytest.raises(ToxlocError, match="is not empty"):
            write()
        assert (tmp_path / "notes.txt").read_text() == "mine"
    export_hf(tiny, tmp_path, overwrite=True)
    assert not (tmp_path / "notes.txt").exists()


def judged(method, rate, fluency):
    return {"method": method, "config": {}, "toxicity": {"any": {"rate": rate, "rate_ci": [rate - 0.05, rate + 0.05]}},
            "fluency": fluency}


def test_the_card_says_what_was_edited_and_measured(tiny, tmp_path):
    edit = rank_ones(tiny, [0, 1])
    edit.note_fit(tiny, {"texts": {"contrast": "pairs.csv", "n_toxic": 3, "n_neutral": 4, "neutral": "builtin"},
                         "tuned_perplexity_ratio": 1.0098, "tuned_kl": None})
    cost = {"perplexity": 30.0, "perplexity_ratio": 1.0123, "kl": 0.0314, "n_tokens": 9}
    effect = {"before": judged("baseline", 0.331, None), "after": judged("trne", 0.15, cost)}
    with edit.applied(tiny):
        export_hf(tiny, tmp_path / "out", effect=effect)
    card = (tmp_path / "out" / "README.md").read_text()
    for words in ("Content warning", "random-gpt2", f"toxloc {toxloc.__version__}", "layers 0, 1", "arXiv:2605.27997",
                  tiny.fingerprint, "pairs.csv (3 toxic, 4 neutral), everyday text builtin",
                  "| any | 33.1% [28.1%, 38.1%] | 15.0% [10.0%, 20.0%] |", "+1.23%", "0.0314", "perplexity +0.98%",
                  "not removed", "`<|endoftext|>`"):
        assert words in card
    assert "not measured\n" not in card
    assert str(Path.home()) not in card + (tmp_path / "out" / "config.json").read_text()


def test_the_card_claims_nothing_that_was_not_measured(tiny, tmp_path):
    export_hf(tiny, tmp_path / "plain")
    plain = (tmp_path / "plain" / "README.md").read_text()
    assert "the model is unedited" in plain
    assert "turned down" not in plain
    export_peft(Chain([rank_ones(tiny, [1]), Meow2X(neurons=[(0, 2), (0, 4), (1, 1)])]), tiny, tmp_path / "adapter")
    card = (tmp_path / "adapter" / "README.md").read_text()
    for words in ("**trne**: layer 1\n", "**meow2x**: 3 neurons (layer 0: 2, layer 1: 1)", "library_name: peft",
                  "Toxicity before and after: not measured", "not recorded", "made by hand",
                  'PeftModel.from_pretrained(base, "path/to/this/folder")'):
        assert words in card
    export_peft(rank_ones(tiny, [1]), tiny, tmp_path / "half", effect={
        "before": judged("baseline", 0.3, None), "after": judged("trne", 0.2, None)})
    assert "Perplexity on everyday text: not measured" in (tmp_path / "half" / "README.md").read_text()


@pytest.mark.parametrize(("effect", "words"), [
    ({"after": judged("trne", 0.1, None)}, 'needs "before" and "after"'),
    ({"before": judged("baseline", 0.1, None), "after": judged("meow2x", 0.1, None)}, "measured with 'meow2x'"),
])
def test_figures_of_something_else_are_refused(tiny, tmp_path, effect, words):
    with rank_ones(tiny, [0]).applied(tiny), pytest.raises(ToxlocError, match=words):
        export_hf(tiny, tmp_path / "out", effect=effect)
    assert list(tmp_path.iterdir()) == []


def test_an_intervention_for_another_model_is_found_out(tiny):
    other = random_model(seed=1)
    by_hand, edit = rank_ones(tiny, [0]), rank_ones(tiny, [0])
    edit.note_fit(tiny, {})
    for one in (by_hand, Chain([by_hand]), edit, Chain([edit, by_hand])):
        check_fitted_on(one, tiny)
    for one in (edit, Chain([by_hand, edit])):
        with pytest.raises(ToxlocError, match=f"{tiny.fingerprint}.*this is random-gpt2 .{other.fingerprint}"):
            check_fitted_on(one, other)


def test_what_a_run_measured_of_its_interventions_is_found(tiny, tmp_path):
    edit, other = rank_ones(tiny, [0]), rank_ones(tiny, [1])
    for name, one in (("trne", edit), ("other", other)):
        one.note_fit(tiny, {"strength": 0.5, "layers": [edit.edits[0].layer, len(name)]})
        one.save(tmp_path / "run" / name)
    runs = [judged("baseline", 0.3, None), judged("meow2x", 0.2, None),
            judged("trne", 0.1, None) | {"config": edit.describe()}]
    write_json(tmp_path / "run" / "results.json", {"about_model": {"fingerprint": tiny.fingerprint}, "runs": runs})
    folder = tmp_path / "run" / "trne"
    fitted = load_intervention(folder)
    assert effect_in_run(fitted, folder, tiny) == {"before": runs[0], "after": runs[2]}
    assert effect_in_run(fitted, folder, random_model(seed=1)) is None
    assert effect_in_run(fitted, tmp_path / "trne", tiny) is None
    assert effect_in_run(load_intervention(tmp_path / "run" / "other"), tmp_path / "run" / "other", tiny) is None


