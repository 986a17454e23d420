"""Overwrite weights so that they can be restored bit for bit, and detect whether weights have changed."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import ToxlocError
from .mapped import FileValues
from .quantized import plain_tensors
from .site_view import SiteView

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
AT_ONCE = 1 << 18  # numbers that a checksum converts at once, few enough for the caches of a processor


@dataclass(frozen=True)
class Overwritten:
    """A live view of a weight that was overwritten, and a function that returns its old values."""

    weight: Tensor
    before: Callable[[], Tensor]


_records: ContextVar[list[Overwritten] | None] = ContextVar("toxloc_records", default=None)


@contextmanager
def recorded() -> Iterator[list[Overwritten]]:
    """Record every weight that `overwrite` overwrites while the block runs, in order.

    Example:
        >>> with recorded() as records, edit.applied(lm): ...       # doctest: +SKIP
    """
    records: list[Overwritten] = []
    token = _records.set(records)
    try:
        yield records
    finally:
        _records.reset(token)


@torch.no_grad()
def overwrite(weight: Tensor, value: Tensor, stack: ExitStack) -> None:
    """Set a weight to a new value; closing the stack restores the old value bit for bit.

    The caller computes the value in float32, and it is rounded once, here, to the dtype of the weight. Subtracting the
    change later would not restore a rounded weight, so a snapshot is kept and copied back. A weight that is mapped from
    a file needs no snapshot, because the file holds its values.

    Raises:
        ToxlocError: the new value is infinite or NaN in the dtype of the weight.
    """
    in_file = FileValues.of(weight)
    before = _copied(weight) if in_file is None else in_file.tensor
    if (records := _records.get()) is not None:
        records.append(Overwritten(weight, before))

    def restore() -> None:
        with torch.no_grad():
            weight.copy_(before())

    stack.callback(restore if in_file is None else in_file.restore)
    weight.copy_(value)
    if not weight.isfinite().all():
        raise ToxlocError("The edit makes weights infinite or NaN, so it is not applied; lower its strength.")


@torch.no_grad()
def add_low_rank(view: SiteView, u: Float[Tensor, "r d_in"], v: Float[Tensor, "r d_model"], stack: ExitStack) -> None:
    """Add uᵀ v to the W of a site; closing the stack restores W bit for bit.

    If the weight is quantized, the change is added to what the map returns.

    Raises:
        ToxlocError: the new weight is infinite or NaN.
    """
    if view.quantized is not None:
        view.quantized.add(u, v, stack)
        return
    W = view.W
    overwrite(W, torch.addmm(W.float(), u.to(W.device).float().T, v.to(W.device).float()), stack)


def _copied(weight: Tensor) -> Callable[[], Tensor]:
    """Copy a weight, and return a function that returns the copy."""
    snapshot = weight.detach().clone()
    return lambda: snapshot


@torch.no_grad()
def checksum(model: nn.Module) -> tuple[int, ...] | None:
    """Return integers that differ if any bit of any weight differs, or if rows or columns change places.

    It takes one read of the weights, which is far less than a forward pass over a text. It is no protection against
    weights that are changed on purpose to have the same checksum.

    Returns:
        Two numbers per tensor, or None if some weights are not in memory, so that they cannot be compared.
    """
    sums = []
    for _, weight in plain_tensors(model):
        if weight.is_meta:
            return None
        if not weight.numel():
            sums += [0, 0]
            continue
        bits = weight.detach().contiguous().view(_INTEGERS[weight.element_size()])
        rows = bits.reshape(-1, bits.shape[-1] if bits.dim() else 1)
        for totals in _sums(rows):
            sums.append(int((totals * torch.arange(1, len(totals) + 1, device=totals.device)).sum()))
    return tuple(sums)


def _sums(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of each column and of each row of an integer matrix as int64, which wrap around."""
    columns = rows.new_zeros(rows.shape[1], dtype=torch.int64)
    of_rows = []
    for part in rows.split(max(1, AT_ONCE // rows.shape[1])):
        wide = part.long()
        columns += wide.sum(0)
        of_rows.append(wide.sum(1))
    return columns, torch.cat(of_rows)
