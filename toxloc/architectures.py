"""Where each supported family of models keeps its blocks and the matrix that writes an MLP's output."""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from .errors import ToxlocError


@dataclass(frozen=True)
class Architecture:
    """Paths in a Hugging Face model.

    Attributes:
        blocks: to the list of blocks.
        down: in a block, to the module that holds W_out.
        post_norm: in a block, to the norm between the MLP and the residual stream, where the family has one.
        norm_offset: that norm multiplies by (offset + its weight).
    """

    blocks: str
    down: str
    post_norm: str | None = None
    norm_offset: float = 0.0


_GEMMA = Architecture("model.layers", "mlp.down_proj", "post_feedforward_layernorm", norm_offset=1.0)
_LLAMA = Architecture("model.layers", "mlp.down_proj")
ARCHITECTURES = {
    "gpt2": Architecture("transformer.h", "mlp.c_proj"),
    "gpt_neo": Architecture("transformer.h", "mlp.c_proj"),
    "gpt_neox": Architecture("gpt_neox.layers", "mlp.dense_4h_to_h"),
    "opt": Architecture("model.decoder.layers", "fc2"),
    "bloom": Architecture("transformer.h", "mlp.dense_4h_to_h"),
    "falcon": Architecture("transformer.h", "mlp.dense_4h_to_h"),
    "phi": Architecture("model.layers", "mlp.fc2"),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "smollm3": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "phi3": _LLAMA,
    "olmo2": Architecture("model.layers", "mlp.down_proj", "post_feedforward_layernorm"),
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


def mlp_modules(model: PreTrainedModel) -> tuple[list[nn.Module], list[nn.Module]]:
    """Return, for every block, the module that holds W_out and the one whose output joins the residual stream.

    They are the same but for families with a norm after the MLP.

    Raises:
        ToxlocError: the family is not supported, or the model has the type's name but not its layout (a mixture of
            experts, for example).
    """
    family = architecture(model.config.model_type)
    try:
        blocks = list(model.get_submodule(family.blocks).children())
        down = [block.get_submodule(family.down) for block in blocks]
        return down, [block.get_submodule(family.post_norm) for block in blocks] if family.post_norm else down
    except AttributeError:
        raise ToxlocError(
            f"This {model.config.model_type} model has no dense MLP at {family.blocks}.*.{family.down}; "
            "mixtures of experts and changed layouts are not supported."
        ) from None
