"""Damaged model folders end in a sentence; no weight is ever left at a random value."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import toxloc
from tests.conftest import random_hf, tokenizer
from toxloc import ToxlocError
from toxloc.models.completeness import check_finite
from toxloc.models.loaded import LoadedModel


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def intact(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / request.param
    random_hf(request.param).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(intact, tmp_path):
    shutil.copytree(intact, tmp_path / "m")
    return tmp_path / "m"


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def down(weights):
    """Name of the W_out of the last layer."""
    return [name for name in weights if name.endswith(("mlp.c_proj.weight", "mlp.down_proj.weight"))][-1]


def size_of_layers(folder):
    config = json.loads((folder / "config.json").read_text())
    return next(name for name in ("n_layer", "num_hidden_layers") if name in config)


def refused(folder):
    with pytest.raises(ToxlocError) as caught:
        toxloc.load_model(str(folder), device="cpu")
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


def test_an_intact_folder_is_loaded(folder):
    assert toxloc.load_model(str(folder), device="cpu").n_layers == 2


def test_a_missing_weight_is_named(folder):
    names = []
    change_weights(folder, lambda weights: names.append(down(weights)) or weights.pop(down(weights)))
    text = refused(folder)
    assert names[0].removeprefix("transformer.") in text
    assert "random values" in text


def test_a_renamed_weight_is_named(folder):
    change_weights(folder, lambda weights: weights.update({"elsewhere": weights.pop(down(weights))}))
    text = refused(folder)
    assert "lacks the weights" in text
    assert "proj" in text


def test_weights_that_the_configuration_does_not_describe_are_named(folder):
    change_config(folder, **{size_of_layers(folder): 1})
    text = refused(folder)
    assert "does not describe" in text
    assert ".1." in text


def test_more_layers_than_the_files_hold(folder):
    change_config(folder, **{size_of_layers(folder): 3})
    assert ".2." in refused(folder)


@pytest.mark.parametrize("count", [10**3, 10**9])
def test_a_gigantic_number_of_layers_is_refused_at_once(folder, count):
    change_config(folder, **{size_of_layers(folder): count})
    assert f"{count:,}" in refused(folder)


@pytest.mark.parametrize("value", [0, -1, 10**9, "many", None, [3], 2.5])
@pytest.mark.parametrize("name", ["vocab_size", "hidden_size", "num_attention_heads"])
def test_impossible_sizes(folder, name, value):
    alias = {"hidden_size": "n_embd", "num_attention_heads": "n_head"} if folder_is_gpt2(folder) else {}
    change_config(folder, **{alias.get(name, name): value})
    refused(folder)


def test_a_larger_model_than_the_files_hold_is_refused_before_memory_is_used(folder):
    config = json.loads((folder / "config.json").read_text())
    change_config(folder, vocab_size=10 * config["vocab_size"])
    assert "describes a model of" in refused(folder)


def folder_is_gpt2(folder):
    return json.loads((folder / "config.json").read_text())["model_type"] == "gpt2"


def test_a_weight_of_another_shape_is_named(folder):
    change_weights(folder, lambda weights: weights.update({down(weights): weights[down(weights)][:-1].contiguous()}))
    assert "proj" in refused(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
def test_a_weight_that_is_not_of_floating_point_is_named(folder, dtype):
    change_weights(folder, lambda weights: weights.update({down(weights): weights[down(weights)].to(dtype)}))
    text = refused(folder)
    assert "proj" in text
    assert "unquantized" in text


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_weight_that_is_not_finite_is_named_with_the_count(folder, value):
    def damage(weights):
        weights[down(weights)][1, 2:5] = value

    change_weights(folder, damage)
    text = refused(folder)
    assert "proj.weight" in text
    assert "3 values" in text


@pytest.mark.parametrize("keep", [0, 7, 8, 200, 0.5, 0.99])
def test_a_truncated_file(folder, keep):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    refused(folder)


def test_an_index_that_names_absent_files(folder):
    weights = load_file(folder / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "model-00001-of-00002.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").rename(folder / "model-00002-of-00002.safetensors")
    refused(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "7", '{"model_type": 3}', "\ufeff{}", "{" * 5000])
def test_a_damaged_configuration(folder, content):
    (folder / "config.json").write_text(content)
    refused(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"dtype": "junk"},
        {"torch_dtype": "junk"},
        {"architectures": "x"},
        {"quantization_config": {"quant_method": "nonsense"}},
        {"_attn_implementation": "nonsense"},
        {"attn_implementation": "nonsense"},
    ],
)
def test_junk_in_the_configuration_ends_in_a_sentence_or_changes_nothing(folder, values):
    change_config(folder, **values)
    try:
        dtype = toxloc.load_model(str(folder), device="cpu").dtype
    except ToxlocError:
        refused(folder)
    else:
        assert dtype == torch.float32


def test_a_tokenizer_with_more_tokens_than_the_model_embeds(folder):
    embedding = "n_embd" if folder_is_gpt2(folder) else "hidden_size"
    assert embedding in json.loads((folder / "config.json").read_text())
    rows = len(tokenizer()) - 5

    def cut(weights):
        for name, weight in weights.items():
            if weight.shape[0] == json.loads((folder / "config.json").read_text())["vocab_size"]:
                weights[name] = weight[:rows].clone()

    change_weights(folder, cut)
    change_config(folder, vocab_size=rows)
    text = refused(folder)
    assert "tokenizer" in text
    assert f"{rows:,}" in text


def test_weights_are_checked_in_every_dtype():
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        model = torch.nn.Linear(3, 2).to(dtype)
        check_finite(model, "m")
        with torch.no_grad():
            model.bias[1] = torch.nan
        with pytest.raises(ToxlocError, match="bias of m holds 1 values"):
            check_finite(model, "m")
    check_finite(torch.nn.Linear(3, 0), "m")
    check_finite(torch.nn.Linear(3, 2, device="meta"), "m")


def test_weights_that_are_not_finite_are_named_also_in_a_model_in_memory():
    hf = random_hf("gpt2")
    with torch.no_grad():
        hf.transformer.h[1].mlp.c_proj.weight[3, 4] = torch.inf
    with pytest.raises(ToxlocError, match=r"transformer\.h\.1\.mlp\.c_proj\.weight of mine holds 1 values"):
        LoadedModel.from_hf(hf, tokenizer(), "mine")


class Malicious:
    """An object whose unpickling writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_that_runs_code_is_refused(folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    toxloc.load_model(str(folder), device="cpu")
    torch.save({**weights, "extra": Malicious(tmp_path / "ran")}, folder / "pytorch_model.bin")
    assert "Weights only load failed" in refused(folder)
    assert not (tmp_path / "ran").exists()


def test_code_in_a_folder_is_not_run_by_default(folder, tmp_path):
    names = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    change_config(folder, model_type="own", auto_map=names)
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\nclass Model: pass")
    assert "brings its own code (auto_map in config.json), which is not run unless you allow it" in refused(folder)
    assert not (tmp_path / "ran").exists()


def test_code_beside_a_family_of_transformers_is_ignored(folder, tmp_path):
    change_config(folder, auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"})
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\nclass Model: pass")
    assert toxloc.load_model(str(folder), device="cpu").n_layers == 2
    assert not (tmp_path / "ran").exists()
