"""Families of models: those that the coverage table contains, and kinds of models that toxloc cannot take."""

from typing import Any

from ..errors import ToxlocError

# The families of docs/models.md, by the `model_type` of the text decoder: all checks of benchmarks/coverage.py pass for
# each. Models of other families are checked when they are loaded (`self_check`).
_CHECKED = """
afmoe apertus arcee bamba bitnet bloom codegen cohere cohere2 deepseek_v2 deepseek_v3 deepseek_v4 ernie4_5
ernie4_5_moe exaone4 falcon falcon_h1 falcon_mamba flex_olmo gemma gemma2 gemma3_text gemma4_text glm glm4 glm4_moe
glm4_moe_lite glm_moe_dsa gpt2 gpt_bigcode gpt_neo gpt_neox gpt_oss gptj granite granitemoe granitemoehybrid
hunyuan_v1_dense jais2 jamba jetmoe laguna lfm2 lfm2_moe llama llama4_text mamba mamba2 minimax_m2 ministral3 mistral
mixtral modernbert-decoder mpt nanochat nemotron nemotron_h olmo olmo2 olmo3 olmo_hybrid olmoe openai-gpt opt phi phi3
phimoe qwen2 qwen2_moe qwen3 qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next recurrent_gemma rwkv seed_oss smollm3
stablelm starcoder2 vaultgemma xglm youtu zamba2
qwen2_5_vl_text qwen3_vl_text
"""
CHECKED = frozenset(_CHECKED.split())
ENDINGS_OF_ENCODERS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")


def check_decoder(config: Any, name: str) -> None:
    """Check that a configuration is that of a decoder-only language model, as far as a configuration tells.

    Raises:
        ToxlocError: the configuration describes an encoder, or an encoder with a decoder.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise ToxlocError(
            f"{name} is a {config.model_type} model, an encoder with a decoder; toxloc takes decoder-only language "
            "models, such as Llama, Qwen or Gemma."
        )
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    architecture = next(iter(getattr(config, "architectures", None) or ()), f"{config.model_type}")
    masked = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    if masked or architecture.endswith(ENDINGS_OF_ENCODERS):
        raise ToxlocError(
            f"{name} is a {architecture} model, an encoder, which does not predict the next token; toxloc takes "
            "decoder-only language models, such as Llama, Qwen or Gemma."
        )
