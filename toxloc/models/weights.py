"""Overwrite weights so that the old bits come back."""

from contextlib import ExitStack

import torch
from torch import Tensor


@torch.no_grad()
def overwrite(weight: Tensor, value: Tensor, stack: ExitStack) -> None:
    """Give a weight a new value; closing the stack restores its old bits.

    The caller computes the value in float32; it is rounded to the weight's type here, once. Subtracting the change
    again would not restore a rounded weight; copying the snapshot does.
    """
    snapshot = weight.detach().clone()

    def restore() -> None:
        with torch.no_grad():
            weight.copy_(snapshot)

    stack.callback(restore)
    weight.copy_(value)
