import gguf
import numpy as np
import pytest
import torch

import toxloc
from toxloc import ToxlocError
from toxloc.sources import converted, not_on_hub, resolve


def test_built_in_name():
    assert resolve("toxloc-tiny").kind == "built-in"


def test_hub_id_is_not_looked_up_here():
    assert resolve("org/some-model").kind == "hub"


@pytest.mark.parametrize(("name", "words"), [
    ("./nowhere", "There is no model folder at './nowhere'"),
    ("/a/b/c", "There is no model folder"),
    ("missing.gguf", "There is no GGUF file at missing.gguf"),
    ("a b", "There is no model folder at 'a b'"),
])
def test_names_that_mean_nothing(name, words):
    with pytest.raises(ToxlocError, match=words):
        resolve(name)


def test_folders_that_are_not_models(tmp_path):
    with pytest.raises(ToxlocError, match=r"has no config\.json"):
        resolve(str(tmp_path))
    (tmp_path / "x.gguf").touch()
    with pytest.raises(ToxlocError, match=r"holds \.gguf files: name one"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ToxlocError, match="no weights"):
        resolve(str(tmp_path))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ToxlocError, match="no tokenizer files"):
        resolve(str(tmp_path))
    with pytest.raises(ToxlocError, match=r"is a file but not a \.gguf"):
        resolve(str(tmp_path / "config.json"))


def test_no_network_is_one_sentence_with_the_fix_and_a_suggestion():
    with pytest.raises(ToxlocError) as caught:
        toxloc.load_model("toxloc-tini")
    text = str(caught.value)
    assert "could not be reached" in text
    assert "give its folder or .gguf file instead" in text
    assert "Did you mean 'toxloc-tiny'?" in text
    assert "\n" not in text


@pytest.mark.parametrize(("reason", "words"), [
    ("404 Client Error", "the hub has no such model"),
    ("You are trying to access a gated repo. 403", "wants a login"),
    ("Connection refused", "could not be reached"),
])
def test_each_refusal_of_the_hub_is_told_apart(reason, words):
    assert words in str(not_on_hub("org/x", OSError(reason)))


def write_gguf(path, layers=2, d=32, d_mlp=64, heads=2):
    """A random llama in GGUF, with a byte-level vocabulary."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    rng = np.random.default_rng(0)
    w = gguf.GGUFWriter(path, "llama")
    w.add_context_length(64)
    w.add_embedding_length(d)
    w.add_block_count(layers)
    w.add_feed_forward_length(d_mlp)
    w.add_head_count(heads)
    w.add_head_count_kv(heads)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(10000.0)
    w.add_rope_dimension_count(d // heads)
    tokens = ["<s>", "</s>", *bytes_to_unicode().values(), "th"]
    w.add_vocab_size(len(tokens))
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(tokens)
    w.add_token_types([3, 3, *[1] * 257])
    w.add_token_merges(["t h"])
    w.add_bos_token_id(0)
    w.add_eos_token_id(1)

    def tensor(name, *shape):
        w.add_tensor(name, rng.normal(0, 0.3, shape).astype(np.float32))

    tensor("token_embd.weight", len(tokens), d)
    tensor("output_norm.weight", d)
    tensor("output.weight", len(tokens), d)
    for i in range(layers):
        for name, *shape in (("attn_norm", d), ("attn_q", d, d), ("attn_k", d, d), ("attn_v", d, d),
                             ("attn_output", d, d), ("ffn_norm", d), ("ffn_gate", d_mlp, d), ("ffn_up", d_mlp, d),
                             ("ffn_down", d, d_mlp)):
            tensor(f"blk.{i}.{name}.weight", *shape)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def test_gguf_is_converted_once_and_is_then_a_normal_model(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_gguf(tmp_path / "small.gguf")
    lm = toxloc.load_model(str(tmp_path / "small.gguf"))
    assert (lm.name, lm.n_layers, lm.d_mlp, lm.d_model) == ("small", 2, 64, 32)
    folder = converted(tmp_path / "small.gguf")
    assert folder.is_relative_to(tmp_path / "cache")
    assert not [p for p in folder.parent.iterdir() if "partial" in p.name]
    assert not hasattr(lm.hf.config, "quantization_config")
    made = (folder / "config.json").stat().st_mtime_ns
    again = toxloc.load_model(str(tmp_path / "small.gguf"))
    assert (folder / "config.json").stat().st_mtime_ns == made
    ids = torch.tensor([[0, 40, 50]])
    torch.testing.assert_close(lm.hf(ids).logits, again.forward(ids, torch.ones_like(ids)), rtol=1e-4, atol=1e-4)
    lm.hf.save_pretrained(tmp_path / "saved")  # fails on a model that still believes itself quantized


def test_a_file_that_is_no_gguf_leaves_nothing_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "bad.gguf").write_bytes(b"not a model")
    with pytest.raises(ToxlocError, match=r"cannot read bad\.gguf"):
        toxloc.load_model(str(tmp_path / "bad.gguf"))
    assert not any((tmp_path / "cache" / "toxloc" / "gguf").iterdir())
