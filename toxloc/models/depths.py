"""Hidden states at every depth: the residual stream before the first block and after each, as the unembedding reads it.

At each depth, the residual stream is passed through what lies between the model's last block and its unembedding, which
is usually a norm. This is the logit lens (nostalgebraist 2020).
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import ToxlocError
from .batching import Batch
from .hooked_tree import SAME, SAME_IN_16_BITS
from .loaded import LoadedModel


def hidden_by_depth(
    lm: LoadedModel,
    batch: Batch,
    kept: Bool[Tensor, "batch pos"],
    reduce: Callable[[Tensor], Tensor] = lambda hidden: hidden,
) -> Float[Tensor, "depths ..."]:
    """Return the hidden states of some positions at every depth, as the unembedding would read them.

    Depth 0 is the residual stream before the first block, and the last depth is what the model's unembedding reads.

    Args:
        lm: the model, with the interventions that are applied to it.
        batch: the texts.
        kept: the positions.
        reduce: function of the hidden states [n, d] of one depth, such as their sum, to save memory.

    Raises:
        ToxlocError: the model does not read its output from the residual stream after the last block.

    Example:
        >>> from toxloc import load_model
        >>> from toxloc.models.batching import batches
        >>> lm = load_model()
        >>> batch = next(batches(lm, ["The sun is out.", "Good morning!"]))
        >>> hidden_by_depth(lm, batch, batch.real).shape[0] == lm.n_layers + 1
        True
    """
    read: list[Tensor] = []

    def watch(residual: Tensor) -> None:
        if residual.shape != (*kept.shape, lm.d_model):
            raise _refusal(lm)
        read.append(reduce(_before_unembedding(lm, residual[kept.to(residual.device)])))

    with lm.hooks([(hook, watch) for hook in (lm.entry_hook, *map(lm.block_hook, range(lm.n_layers)))]):
        output = reduce(lm.forward_hidden(batch.ids, batch.mask)[kept])
    if len(read) != lm.n_layers + 1 or not _is_same(read.pop(), output):
        raise _refusal(lm)
    return torch.stack([*read, output])


def _before_unembedding(lm: LoadedModel, residual: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_out"]:
    """Pass the residual stream through the modules between the last block and the unembedding."""
    if lm.structure is None:
        modules = [lm.hooked.ln_final]
    else:
        paths = (lm.structure.final_norm, lm.structure.head)
        modules = [lm.hf.get_submodule(path) for path in paths if path is not None]
    for module in modules:
        residual = module(residual.to(next(module.parameters(), residual).device))
    return residual.to(lm.device)


def _is_same(read: Tensor, output: Tensor) -> bool:
    if read.shape != output.shape:
        return False
    return bool((read - output).abs().max() <= SAME.get(output.dtype, SAME_IN_16_BITS) * output.abs().max())


def _refusal(lm: LoadedModel) -> ToxlocError:
    return ToxlocError(
        f"The unembedding of {lm.name} does not read the residual stream after its last block through a final norm, so "
        "there is no logit lens of it; choose a model of another family."
    )
