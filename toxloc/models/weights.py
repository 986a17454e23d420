"""Overwrite weights so that they can be restored bit for bit, and detect whether weights have changed."""

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from ..errors import ToxlocError

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def overwrite(weight: Tensor, value: Tensor, stack: ExitStack) -> None:
    """Set a weight to a new value; closing the stack restores the old value bit for bit.

    The caller computes the value in float32, and it is rounded once, here, to the dtype of the weight. Subtracting the
    change later would not restore a rounded weight, so a snapshot is kept and copied back.

    Raises:
        ToxlocError: the new value is infinite or NaN in the dtype of the weight.
    """
    snapshot = weight.detach().clone()

    def restore() -> None:
        with torch.no_grad():
            weight.copy_(snapshot)

    stack.callback(restore)
    weight.copy_(value)
    if not weight.isfinite().all():
        raise ToxlocError("The edit makes weights infinite or NaN, so it is not applied; lower its strength.")


@torch.no_grad()
def checksum(model: nn.Module) -> tuple[int, ...] | None:
    """Return integers that differ if any bit of any weight differs, or if rows or columns change places.

    It takes two reads of the weights, which is far less than a forward pass over a text. It is no protection against
    weights that are changed on purpose to have the same checksum.

    Returns:
        Two numbers per weight, or None if some weights are not in memory, so that they cannot be compared.
    """
    sums = []
    for weight in model.parameters():
        if weight.is_meta:
            return None
        bits = weight.detach().contiguous().view(_INTEGERS[weight.element_size()])
        rows = bits.reshape(-1, bits.shape[-1] if bits.dim() else 1)
        for dim in (0, 1):
            total = rows.sum(dim, dtype=torch.int64)
            sums.append(int((total * torch.arange(1, len(total) + 1, device=total.device)).sum()))
    return tuple(sums)
