"""`load_model`: multimodal models, and models that bring their own code."""

import json

import pytest
import torch
import transformers
from transformers import AutoModelForImageTextToText

import toxloc
from benchmarks.families import MULTIMODAL, multimodal_config
from tests.conftest import TEXTS, bits, random_hf, same_bits, tokenizer
from toxloc import TRNE, ContrastSet, ToxlocError
from toxloc.interventions.export import export_hf
from toxloc.models.sites import Site

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
open(RAN, "w").close()

class OwnConfig(LlamaConfig):
    model_type = "own-llama"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def with_code(tmp_path, monkeypatch):
    """A folder whose model class is in the folder; and the file that the code writes when it runs."""
    modules = tmp_path / "modules"
    for place in (transformers.dynamic_module_utils, transformers.utils.hub, transformers.utils):
        if hasattr(place, "HF_MODULES_CACHE"):
            monkeypatch.setattr(place, "HF_MODULES_CACHE", str(modules))
    folder, ran = tmp_path / "own", tmp_path / "ran"
    random_hf("llama").save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    (folder / "own.py").write_text(CODE.replace("RAN", repr(str(ran))))
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own-llama",
        "architectures": ["OwnForCausalLM"],
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder, ran


def test_code_runs_only_if_it_is_allowed(with_code):
    folder, ran = with_code
    with pytest.raises(ToxlocError, match=r"brings its own code .* give trust_remote_code=True \(--trust-remote-code"):
        toxloc.load_model(str(folder), device="cpu")
    assert not ran.exists()
    lm = toxloc.load_model(str(folder), device="cpu", trust_remote_code=True)
    assert ran.exists()
    assert type(lm.hf).__name__ == "OwnForCausalLM" and lm.n_layers == 2
    plain = random_hf("llama")
    assert all(torch.equal(a, b) for a, b in zip(lm.hf.parameters(), plain.parameters(), strict=True))


def test_a_model_with_its_own_code_is_localized_edited_and_copied(with_code):
    lm = toxloc.load_model(str(with_code[0]), device="cpu", trust_remote_code=True)
    pairs, before = ContrastSet(TEXTS[:3], TEXTS[2:]), bits(lm)
    assert toxloc.localize(lm, pairs, draws=0).layer_scores("attribution").shape == (2,)
    with TRNE.fit(lm, pairs, norm=0.1).applied(lm):
        assert not same_bits(before, lm)
    assert same_bits(before, lm)
    assert lm.copy().fingerprint == lm.fingerprint


def test_code_that_is_missing_or_broken_ends_in_a_sentence(with_code):
    folder, _ = with_code
    for content, words in (("class Own", "SyntaxError"), ("", "OwnConfig"), (None, "own.py")):
        if content is None:
            (folder / "own.py").unlink()
        else:
            (folder / "own.py").write_text(content)
        with pytest.raises(ToxlocError) as caught:
            toxloc.load_model(str(folder), device="cpu", trust_remote_code=True)
        assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("family", [name for name in MULTIMODAL if name in ("gemma3", "mistral3", "qwen3_vl")])
def test_a_multimodal_folder_is_loaded_with_its_vision_part_which_no_edit_changes(family, tmp_path):
    torch.manual_seed(0)
    hf = AutoModelForImageTextToText.from_config(multimodal_config(family))
    hf.save_pretrained(tmp_path / "m")
    tokenizer().save_pretrained(tmp_path / "m")
    lm = toxloc.load_model(str(tmp_path / "m"), device="cpu")
    assert type(lm.hf) is type(hf)
    generator = torch.Generator().manual_seed(0)
    view = lm.at(Site(0))
    edit = TRNE(
        [
            toxloc.interventions.rank_one.RankOne(
                0, torch.randn(view.d_in, generator=generator), torch.randn(lm.d_model, generator=generator)
            )
        ]
    )
    with edit.applied(lm):
        export_hf(lm, tmp_path / "out")
        expected = bits(lm)
    out = toxloc.load_model(str(tmp_path / "out"), device="cpu")
    assert same_bits(expected, out)
    changed = [
        name
        for (name, new), old in zip(out.hf.named_parameters(), hf.parameters(), strict=True)
        if not torch.equal(new, old)
    ]
    assert len(changed) == 1 and "vision" not in changed[0]
