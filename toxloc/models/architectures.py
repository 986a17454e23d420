"""Paths of the blocks, the linear maps and the norms in the models of each supported family."""

from dataclasses import dataclass, replace

from torch import nn
from transformers import PreTrainedModel

from ..errors import ToxlocError


@dataclass(frozen=True)
class Architecture:
    """Paths of the modules in the Hugging Face models of a family.

    Attributes:
        blocks: path of the list of blocks.
        up: paths, in a block, of the linear maps through which the MLP reads the residual stream: up, or gate and up.
        down: path, in a block, of the module that holds W_out, which writes the MLP's output.
        attention: path, in a block, of the module that holds W_O, which writes the attention's output.
        final_norm: path of the norm between the last block and the unembedding.
        post_norm: path, in a block, of the norm between the MLP and the residual stream; None if there is no such norm.
        attention_norm: path, in a block, of the norm between the attention and the residual stream; None if there is no
            such norm.
        joint_up: whether a single matrix holds gate and up, in this order.
        norm_offset: offset of `post_norm` and `attention_norm`, which multiply by (norm_offset + their weight).
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
        """Return the path, in a block, of the linear map that writes the output of a part, "mlp" or "attention"."""
        return {"mlp": self.down, "attention": self.attention}[part]

    def norm(self, part: str) -> str | None:
        """Return the path, in a block, of the norm between a part and the residual stream; None if there is none."""
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
        ToxlocError: the family is not supported; the message lists the supported families.
    """
    if model_type not in ARCHITECTURES:
        raise ToxlocError(
            f"Models of type {model_type!r} are not supported; toxloc supports decoder-only language models with one "
            f"dense MLP per block, of the types {', '.join(sorted(ARCHITECTURES))}."
        )
    return ARCHITECTURES[model_type]


def blocks_of(model: PreTrainedModel) -> list[nn.Module]:
    """Return the blocks of a model, and check that they have the modules that are listed for the family.

    Raises:
        ToxlocError: the family is not supported, or the model does not have the layout of its type (for example a
            mixture of experts).
    """
    family = architecture(model.config.model_type)
    paths = [*family.up, family.down, family.attention, family.post_norm, family.attention_norm]
    missing = family.blocks
    try:
        blocks = list(model.get_submodule(family.blocks).children())
        for block in blocks:
            for path in paths:
                missing = f"{family.blocks}.*.{path}"
                block.get_submodule(path or "")
    except AttributeError:
        raise ToxlocError(
            f"This {model.config.model_type} model has no module {missing}, which this family has; mixtures "
            "of experts and changed layouts are not supported."
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
            f"This {model.config.model_type} model has no final norm at {path}, so the tokens that its neurons "
            "promote cannot be computed from its weights; choose a model with a final norm."
        ) from None
    return norm
