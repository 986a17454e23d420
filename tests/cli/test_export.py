import copy

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import toxloc

from .conftest import invoke, plain


@pytest.mark.parametrize(
    "word", ["INTERVENTION_FOLDER", "--model", "--format", "--any-model", "--offload", "--quantize", "model card"]
)
def test_help(word):
    assert word in plain(invoke("export", "--help", columns=200).output)


def test_export_writes_the_edited_model_and_the_adapter(suppressed, tmp_path, lm):
    ids = lm.tokenizer("<|endoftext|>You are such a", return_tensors="pt").input_ids
    with torch.no_grad(), toxloc.load_intervention(suppressed[0]).applied(lm):
        wanted = lm.hf(ids).logits
    for form in ("hf", "peft"):
        result = invoke("export", suppressed[0], "--model", "toxloc-tiny", "--out", tmp_path / form, "--format", form)
        assert result.exit_code == 0, result.output
        assert "builtin (20 toxic, 20 neutral)" in (tmp_path / form / "README.md").read_text()
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    adapted = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "peft", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(whole(ids).logits, wanted, rtol=0, atol=0)
        torch.testing.assert_close(adapted(ids).logits, wanted, rtol=1e-5, atol=1e-5)
        assert (wanted - lm.hf(ids).logits).abs().max() > 1e-3


def test_export_is_for_the_model_it_was_fitted_on(suppressed, tmp_path, lm):
    torch.manual_seed(0)
    other = tmp_path / "other"
    copy.deepcopy(lm.hf).apply(lm.hf._init_weights).save_pretrained(other)
    lm.tokenizer.save_pretrained(other)
    arguments = ["export", suppressed[0], "--model", other, "--out", tmp_path / "out"]
    refused = invoke(*arguments)
    assert isinstance(refused.exception, toxloc.ToxlocError)
    assert f"was fitted on toxloc-tiny (fingerprint {lm.fingerprint}), and this is other (" in str(refused.exception)
    assert not (tmp_path / "out").exists()
    assert invoke(*arguments, "--any-model").exit_code == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "holds no intervention"),
        (["nowhere", "--format", "gguf"], "Unknown format 'gguf'; choose one of hf"),
        (["steering"], "has no form in the weights"),
    ],
)
def test_what_cannot_be_exported_is_refused(tmp_path, monkeypatch, refused, arguments, words):
    monkeypatch.chdir(tmp_path)
    toxloc.Steering(torch.ones(256), layer=1, strength=1.0).save("steering")
    assert words in refused("export", *arguments, "--model", "toxloc-tiny", "--out", "out")
    assert [path.name for path in tmp_path.iterdir()] == ["steering"]


def test_a_model_on_the_disk_is_exported_like_one_in_memory(suppressed, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, options in {"memory": [], "disk": ["--offload"]}.items():
        result = invoke("export", suppressed[0], "--model", "toxloc-tiny", "--out", tmp_path / name, *options)
        assert result.exit_code == 0, result.output
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("memory", "disk"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_unknown_quantization_is_refused(suppressed, tmp_path):
    refused = invoke("export", suppressed[0], "--model", "toxloc-tiny", "--out", tmp_path / "a", "--quantize", "int3")
    assert "Unknown quantization 'int3'; choose one of torchao-int8" in str(refused.exception)
    assert not (tmp_path / "a").exists()
