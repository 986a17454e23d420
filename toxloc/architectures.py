"""Where each supported family of models keeps its blocks and the matrix that writes an MLP's output."""

from dataclasses import dataclass

from torch import nn

from .errors import ToxlocError


@dataclass(frozen=True)
class Architecture:
    """Paths in a Hugging Face model: `blocks` to the list of blocks, `down` in a block to the module of W_out."""

    blocks: str
    down: str


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
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "phi3": _LLAMA,
    "olmo2": _LLAMA,
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


def down_projections(model: nn.Module, model_type: str) -> list[nn.Module]:
    """Return the module that holds W_out (d_mlp to d_model) of every block, first block first.

    Raises:
        ToxlocError: the model has the type's name but not its layout (a mixture of experts, for example).
    """
    family = architecture(model_type)
    try:
        blocks = model.get_submodule(family.blocks)
        return [block.get_submodule(family.down) for block in blocks.children()]
    except AttributeError:
        raise ToxlocError(
            f"This {model_type} model has no dense MLP at {family.blocks}.*.{family.down}; "
            "mixtures of experts and changed layouts are not supported."
        ) from None


