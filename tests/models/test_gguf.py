import pytest
import torch

import toxloc
from tests.conftest import write_gguf
from toxloc import ToxlocError
from toxloc.models.gguf import converted_folder


def test_gguf_is_converted_once_to_a_normal_model(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_gguf(tmp_path / "small.gguf")
    lm = toxloc.load_model(str(tmp_path / "small.gguf"))
    assert (lm.name, lm.n_layers, lm.d_mlp, lm.d_model) == ("small", 2, 64, 32)
    folder = converted_folder(tmp_path / "small.gguf")
    assert folder.is_relative_to(tmp_path / "cache")
    assert not [p for p in folder.parent.iterdir() if "partial" in p.name]
    assert not hasattr(lm.hf.config, "quantization_config")
    made = (folder / "config.json").stat().st_mtime_ns
    again = toxloc.load_model(str(tmp_path / "small.gguf"))
    assert (folder / "config.json").stat().st_mtime_ns == made
    ids = torch.tensor([[0, 40, 50]])
    torch.testing.assert_close(lm.hf(ids).logits, again.forward(ids, torch.ones_like(ids)), rtol=1e-4, atol=1e-4)
    lm.hf.save_pretrained(tmp_path / "saved")  # fails if the model is still marked as quantised


def test_a_file_that_is_not_gguf_leaves_nothing_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "bad.gguf").write_bytes(b"not a model")
    with pytest.raises(ToxlocError, match=r"cannot read bad\.gguf"):
        toxloc.load_model(str(tmp_path / "bad.gguf"))
    assert list(tmp_path.rglob("cache/**/*")) == []


def test_a_file_without_a_tensor_is_refused(tmp_path, monkeypatch):
    """transformers would fill in random weights, and the converted folder would look whole."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_gguf(tmp_path / "small.gguf", leave_out="blk.1.ffn_down.weight")
    with pytest.raises(ToxlocError, match=r"small\.gguf lacks the weights model\.layers\.1\.mlp\.down_proj\.weight"):
        toxloc.load_model(str(tmp_path / "small.gguf"))
    assert not list(tmp_path.glob("cache/**/config.json"))
