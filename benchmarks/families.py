"""Tiny random models of every family, for the tests and for the coverage table."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from toxloc import LoadedModel
from toxloc.models.sources import BUILT_IN

LLAMA: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
LAYOUTS: dict[str, dict[str, Any]] = {  # one family per layout; slow tests use only these
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "gpt_neox": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48},
    "opt": {
        "hidden_size": 16,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 16,
    },
    "llama": LLAMA,
    "olmo2": {"hidden_size": 16, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2},
    "gemma2": {**LLAMA, "head_dim": 8},
}
SIZES = LAYOUTS | {
    "gpt_neo": {
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 2,
        "max_position_embeddings": 64,
        "attention_types": [[["global", "local"], 1]],
    },
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "falcon": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    "phi": {"hidden_size": 16, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2},
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "smollm3": LLAMA,
    "phi3": LLAMA,
    "qwen3": {**LLAMA, "head_dim": 8},
    "gemma3_text": {**LLAMA, "head_dim": 8},
}


def tokenizer() -> Any:
    """Return the tokenizer of all these models."""
    return AutoTokenizer.from_pretrained(BUILT_IN["toxloc-tiny"])


def random_hf(
    family: str = "gpt2", seed: int = 0, scale: float = 8.0, dtype: torch.dtype = torch.float32, **sizes: Any
) -> Any:
    """Make a random Hugging Face model whose weights are so large that its predictions are far from uniform."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        family, vocab_size=8192, bos_token_id=0, eos_token_id=0, pad_token_id=0, **{**SIZES[family], **sizes}
    )
    hf = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, p in hf.named_parameters():
            if p.ndim == 2:
                p.mul_(scale)
            elif "bias" in name:
                p.normal_(0, 0.1)
    return hf.to(dtype)


def random_model(family: str = "gpt2", **sizes: Any) -> LoadedModel:
    """Make a random model with hooks."""
    return LoadedModel.from_hf(random_hf(family, **sizes), tokenizer(), f"random-{family}")
