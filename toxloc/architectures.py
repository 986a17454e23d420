"""Where each supported family keeps its blocks, the matrix that writes an MLP's output, and the norms after it."""

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
        final_norm: to the norm between the last block and the unembedding.
        post_norm: in a block, to the norm between the MLP and the residual stream, where the family has one.
        norm_offset: these norms multiply by (offset + their weight).
    """

    blocks: str
    down: str
    final_norm: str
    post_norm: str | None = None
    norm_offset: float = 0.0


_GEMMA = Architecture("model.layers", "mlp.down_proj", "model.norm", "post_feedforward_layernorm", norm_offset=1.0)
_LLAMA = Architecture("model.layers", "mlp.down_proj", "model.norm")
ARCHITECTURES = {
    "gpt2": Architecture("transformer.h", "mlp.c_proj", "transformer.ln_f"),
    "gpt_neo": Architecture("transformer.h", "mlp.c_proj", "transformer.ln_f"),
    "gpt_neox": Architecture("gpt_neox.layers", "mlp.dense_4h_to_h", "gpt_neox.final_layer_norm"),
    "opt": Architecture("model.decoder.layers", "fc2", "model.decoder.final_layer_norm"),
    "bloom": Architecture("transformer.h", "mlp.dense_4h_to_h", "transformer.ln_f"),
    "falcon": Architecture("transformer.h", "mlp.dense_4h_to_h", "transformer.ln_f"),
    "phi": Architecture("model.layers", "mlp.fc2", "model.final_layernorm"),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "smollm3": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "phi3": _LLAMA,
    "olmo2": Architecture("model.layers", "mlp.down_proj", "model.norm", "post_feedforward_layernorm"),
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


def final_norm(model: PreTrainedModel) -> nn.Module:
    """Return the norm between the last block and the unembedding.

    Raises:
        ToxlocError: the family is not supported, or this model has no such norm (OPT-350m norms inside its blocks).
    """
    path = architecture(model.config.model_type).final_norm
    try:
        norm: nn.Module = model.get_submodule(path)
    except AttributeError:
        raise ToxlocError(f"This {model.config.model_type} model has no final norm at {path}, so what its neurons "
                          "promote cannot be read off their weights; choose a model with one.") from None
    return norm
