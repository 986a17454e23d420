"""Tiny random models of every family, for the tests and for the coverage table."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from toxloc import LoadedModel
from toxloc.models.families import CHECKED
from toxloc.models.sources import BUILT_IN

VOCABULARY = 8192  # of the tokenizer of all these models
# Values of the fields of configurations; a family takes those that it has.
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "n_embd": 16,
    "d_model": 16,
    "word_embed_proj_dim": 16,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "num_attention_heads": 2,
    "num_heads": 2,
    "n_head": 2,
    "n_heads": 2,
    "attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "n_positions": 128,
    "max_seq_len": 128,
    "sliding_window": 64,
    "rotary_dim": 4,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "decoder_sparse_step": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "vocab_size": VOCABULARY,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
_SLIDING = {"layer_types": ["sliding_attention", "full_attention"]}
_LATENT = {"num_key_value_heads": 2}
SPECIAL: dict[str, dict[str, Any]] = {
    "afmoe": {"num_dense_layers": 1, **_SLIDING},
    "bamba": {
        "attn_layer_indices": [1],
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
    },
    "biogpt": {"hidden_size": 16},
    "cohere": {"logit_scale": 0.25},
    "deepseek_v2": _LATENT,
    "diffllama": {"num_key_value_heads": 2},
    "deepseek_v3": _LATENT,
    "deepseek_v4": {"o_lora_rank": 8, "o_groups": 2},
    "falcon_h1": {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_d_ssm": 32, "mamba_n_groups": 1},
    "falcon_mamba": {"state_size": 8, "time_step_rank": 4},
    "gemma3_text": _SLIDING,
    "gemma4_text": {
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "num_kv_shared_layers": 0,
        "global_head_dim": 16,
        **_SLIDING,
    },
    "glm4_moe_lite": _LATENT,
    "glm_moe_dsa": {"index_head_dim": 16, "index_n_heads": 2, "index_topk": 128, **_LATENT},
    "gpt_bigcode": {"n_inner": 48},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "intermediate_size": 64},
    "granite": {"logits_scaling": 4.0, "residual_multiplier": 0.5},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"],
        "layers_block_type": ["mamba", "attention"],
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "shared_intermediate_size": 24,
    },
    "granitemoeshared": {"shared_intermediate_size": 24},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "jetmoe": {"kv_channels": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"], "full_attn_idxs": [1], "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "llama4_text": {
        "intermediate_size": 24,
        "intermediate_size_mlp": 48,
        "moe_layers": [1],
        "interleave_moe_layer_step": 2,
        "no_rope_layers": [1, 0],
        "attention_chunk_size": 64,
    },
    "mamba": {"state_size": 8, "time_step_rank": 4},
    "mamba2": {"num_heads": 4, "head_dim": 8, "state_size": 8, "n_groups": 1},
    "modernbert-decoder": {"local_attention": 64, **_SLIDING},
    "nemotron_h": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "attention", "mlp", "moe"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 1,
        "moe_latent_size": None,
        "moe_shared_expert_intermediate_size": 24,
    },
    "olmo_hybrid": _HYBRID,
    "qwen2_5_vl_text": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}},
    "qwen3_5_moe_text": _HYBRID,
    "qwen3_5_text": _HYBRID,
    "qwen3_next": _HYBRID,
    "recurrent_gemma": {
        "num_hidden_layers": 3,
        "block_types": ["recurrent", "recurrent", "attention"],
        "lru_width": 16,
        "attention_window_size": 64,
    },
    "rwkv": {"attention_hidden_size": 16, "context_length": 128},
    "youtu": _LATENT,
    "zamba2": {
        "num_hidden_layers": 3,
        "layers_block_type": ["mamba", "hybrid", "mamba"],
        "hybrid_layer_ids": [1],
        "mamba_ngroups": 1,
        "n_mamba_heads": 4,
        "mamba_headdim": 8,
        "mamba_d_state": 8,
        "num_mem_blocks": 1,
        "adapter_rank": 4,
    },
}
LAYOUTS = ("gpt2", "gpt_neox", "opt", "llama", "olmo2", "gemma2")  # one dense family per layout, for slow tests
_OTHERS = ("gpt_neo", "bloom", "falcon", "phi", "mistral", "qwen2", "smollm3", "phi3", "qwen3", "gemma3_text")
DENSE = (*LAYOUTS, *_OTHERS)  # the families of version 0.1
EXPERTS = ("mixtral", "qwen2_moe", "deepseek_v3", "gpt_oss", "llama4_text", "jetmoe")  # one family per layout
HYBRIDS = ("qwen3_5_text", "lfm2", "jamba", "falcon_h1", "mamba")
MULTIMODAL = ("gemma3", "gemma4", "mistral3", "qwen2_5_vl", "qwen3_5", "qwen3_vl")
FLOAT32 = ("xglm",)  # families that transformers does not run in float64
FAMILIES = tuple(sorted(CHECKED - {"qwen2_5_vl_text", "qwen3_vl_text"}))
# Families that TransformerLens 4.3 has no architecture for, and that toxloc finds by their structure.
_STRUCTURE_ONLY = """
biogpt cwm diffllama dots1 exaone_moe granitemoeshared helium hunyuan_v1_moe minimax ministral persimmon
"""
STRUCTURE_ONLY = tuple(_STRUCTURE_ONLY.split())


def tokenizer() -> Any:
    """Return the tokenizer of all these models."""
    return AutoTokenizer.from_pretrained(BUILT_IN["toxloc-tiny"])


def small_config(family: str, **sizes: Any) -> Any:
    """Return a small configuration of a family; `sizes` are further fields.

    The fields of `SMALL` that the family has are set, and those of `SPECIAL` for the family.
    """
    default = AutoConfig.for_model(family)
    names = default.to_dict().keys() | default.attribute_map.keys()
    small = {name: value for name, value in SMALL.items() if name in names and _is_settable(default, name)}
    values: dict[str, Any] = {}
    for part in (small, SPECIAL.get(family, {}), sizes):  # some fields have two names, of which one is kept
        values |= {default.attribute_map.get(name, name): value for name, value in part.items()}
    kinds, field = list(dict.fromkeys(getattr(default, "layer_types", None) or ())), "layer_types"
    if kinds and field not in values and _is_settable(default, field):
        values[field] = (kinds * 9)[: values.get("num_hidden_layers", 2)]
    return type(default)(**values)


def _is_settable(config: Any, name: str) -> bool:
    """Whether a field of a configuration, or the field that it is another name of, can be set."""
    field = getattr(type(config), config.attribute_map.get(name, name), None)
    return not (isinstance(field, property) and field.fset is None)


def random_hf(
    family: str = "gpt2", seed: int = 0, scale: float = 8.0, dtype: torch.dtype = torch.float32, **sizes: Any
) -> Any:
    """Make a random Hugging Face model whose weights are so large that its predictions are far from uniform."""
    torch.manual_seed(seed)
    if family in MULTIMODAL:
        hf = AutoModelForImageTextToText.from_config(multimodal_config(family, **sizes)).eval()
    else:
        hf = AutoModelForCausalLM.from_config(small_config(family, **sizes)).eval()
    with torch.no_grad():
        for name, p in hf.named_parameters():
            if "bias" in name and (p.ndim < 2 or name.endswith("_bias")):  # GPT-OSS has a bias for each expert
                p.normal_(0, 0.1)
            elif p.ndim >= 2:
                p.mul_(scale)
    if dtype == torch.float64:  # the fast computation of experts takes at most float32
        hf.config._experts_implementation = "eager"
    return hf.to(dtype)


def multimodal_config(family: str, **sizes: Any) -> Any:
    """Return a small configuration of a multimodal family; `sizes` are fields of its text decoder."""
    default = AutoConfig.for_model(family)
    text = default.text_config.model_type
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "depth": 1,
        "num_heads": 2,
        "out_hidden_size": 16,
        "head_dim": 8,
    }
    tower = default.vision_config or default.sub_configs["vision_config"]()
    known = {name: value for name, value in vision.items() if name in tower.to_dict()}
    return type(default)(text_config=small_config(text, **sizes).to_dict(), vision_config=tower.to_dict() | known)


def random_model(family: str = "gpt2", **sizes: Any) -> LoadedModel:
    """Make a random model with hooks."""
    return LoadedModel.from_hf(random_hf(family, **sizes), tokenizer(), f"random-{family}")
