"""Where each supported family keeps its blocks, the matrix that writes an MLP's output, and the norms after it."""

from dataclasses import dataclass, replace

from torch import nn
from transformers import PreTrainedModel

from ..errors import ToxlocError


@dataclass(frozen=True)
class Architecture:
    """Paths in a Hugging Face model.

    Attributes:
        blocks: to the list of blocks.
        down: in a block, to the module that holds W_out, which writes the MLP's output.
        up: in a block, to the linear maps that read the residual stream for the MLP: one, or gate and up.
        joint_up: gate and up are one matrix, in this order.
        attention: in a block, to the module that holds W_O, which writes the attention's output.
        final_norm: to the norm between the last block and the unembedding.
        post_norm: in a block, to the norm between the MLP and the residual stream, where the family has one.
        attention_norm: the same for the attention.
        norm_offset: these norms multiply by (norm_offset + their weight).
    """

    blocks: str
    up: tuple[str, ...]
    down: str
    attention: str
    final_norm: str
    post_norm: str | None = None
    attention_norm: str | None = None
    joint_up: bool = False
    norm_offset: float = 0.0

    def linear(self, part: str) -> str:
        """Return the path, in a block, to the linear map that writes a part's output."""
        return {"mlp": self.down, "attention": self.attention}[part]

    def norm(self, part: str) -> str | None:
        """Return the path, in a block, to the norm between a part's linear map and the residual stream."""
        return {"mlp": self.post_norm, "attention": self.attention_norm}[part]


_GATED = ("mlp.gate_proj", "mlp.up_proj")
_LLAMA = Architecture("model.layers", _GATED, "mlp.down_proj", "self_attn.o_proj", "model.norm")
_NORMED = replace(_LLAMA, post_norm="post_feedforward_layernorm", attention_norm="post_attention_layernorm")
_GEMMA = replace(_NORMED, norm_offset=1.0)
_GPT2 = Architecture("transformer.h", ("mlp.c_fc",), "mlp.c_proj", "attn.c_proj", "transformer.ln_f")
_BLOOM = Architecture(
    "transformer.h", ("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h", "self_attention.dense", "transformer.ln_f"
)
ARCHITECTURES = {
    "gpt2": _GPT2,
    "gpt_neo": replace(_GPT2, attention="attn.attention.out_proj"),
    "gpt_neox": Architecture(
        "gpt_neox.layers", ("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h", "attention.dense", "gpt_neox.final_layer_norm"
    ),
    "opt": Architecture(
        "model.decoder.layers", ("fc1",), "fc2", "self_attn.out_proj", "model.decoder.final_layer_norm"
    ),
    "bloom": _BLOOM,
    "falcon": _BLOOM,
    "phi": Architecture("model.layers", ("mlp.fc1",), "mlp.fc2", "self_attn.dense", "model.final_layernorm"),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "smollm3": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "phi3": replace(_LLAMA, up=("mlp.gate_up_proj",), joint_up=True),
    "olmo2": _NORMED,
}


def architecture(model_type: str) -> Architecture:
    """Look up a family by the `model_type` of its configuration.

    Raises:
        ToxlocError: the family is not in the table; the message lists those that are.
    """
    if model_type not in ARCHITECTURES:
        raise ToxlocError(
            f"Models of type {model_type!r} are not supported; toxloc works on decoder-only language models with "
            f"one dense MLP per block: {', '.join(sorted(ARCHITECTURES))}."
        )
    return ARCHITECTURES[model_type]


def blocks_of(model: PreTrainedModel) -> list[nn.Module]:
    """Return the blocks, checked to hold what this file says of the family.

    Raises:
        ToxlocError: the family is not supported, or the model has the type's name but not its layout (a mixture of
            experts, for example).
    """
    family = architecture(model.config.model_type)
    try:
        blocks = list(model.get_submodule(family.blocks).children())
        for block in blocks:
            for path in (*family.up, family.down, family.attention, family.post_norm, family.attention_norm):
                block.get_submodule(path or "")
    except AttributeError:
        raise ToxlocError(
            f"This {model.config.model_type} model has no dense MLP at {family.blocks}.*.{family.down}; "
            "mixtures of experts and changed layouts are not supported."
        ) from None
    return blocks


def final_norm(model: PreTrainedModel) -> nn.Module:
    """Return the norm between the last block and the unembedding.

    Raises:
        ToxlocError: the family is not supported, or this model has no such norm (OPT-350m norms inside its blocks).
    """
    path = architecture(model.config.model_type).final_norm
    try:
        norm: nn.Module = model.get_submodule(path)
    except AttributeError:
        raise ToxlocError(
            f"This {model.config.model_type} model has no final norm at {path}, so what its neurons "
            "promote cannot be read off their weights; choose a model with one."
        ) from None
    return norm
