"""Subtract a vector from the residual stream after a block: the base class of steering and value vectors."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from .base import Intervention, check_layers

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from ..models.loaded import LoadedModel


class ResidualShift(Intervention, abstract=True):
    """Subtract strength * direction from the residual stream after one block, at every position.

    Args:
        direction: the vector [d_model].
        layer: block after which the vector is subtracted.
        strength: factor of the vector.
    """

    def __init__(self, direction: Float[Tensor, " d_model"], layer: int, strength: float):
        super().__init__()
        self.direction, self.layer, self.strength = direction.float(), int(layer), float(strength)

    def check(self, lm: LoadedModel) -> None:
        """Raise ToxlocError if the layer is not in the model or the direction has a length other than d_model."""
        from .directions import check_width

        check_layers(lm, [self.layer])
        check_width(lm, self, self.direction)

    def _install(self, lm: LoadedModel, stack: ExitStack) -> None:
        from ..models.activations import change, residual

        step = (self.strength * self.direction).to(lm.device_of(self.layer))
        change(lm, residual(lm, self.layer), lambda x: x - step, stack)

    def _tensors(self) -> dict[str, Tensor]:
        return {"direction": self.direction}
