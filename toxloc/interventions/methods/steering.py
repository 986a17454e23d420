"""Activation steering: subtract the mean difference of toxic and neutral texts from one layer's residual stream."""

import math
from contextlib import ExitStack
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from ...errors import ToxlocError
from ...models.activations import change, residual
from ...models.loaded import LoadedModel
from ...texts.contrast import ContrastSet
from ...texts.neutral import NeutralText
from ..base import Intervention, check_layers
from ..budget import Budget
from ..directions import both_sides, check_width, mean_difference
from ..tuning import tune


class Steering(Intervention):
    """Subtract strength * v from the residual stream after one block, at every position.

    v [d_model] = mean over toxic texts of x - mean over neutral texts of x, with x the residual stream after that
    block, averaged over a text's real tokens but the first. A strength of 1 takes the whole difference off, a negative
    one adds to it.

    Make one with `Steering.fit`; the constructor takes a ready direction.

    Args:
        direction: v.
        layer: the block after which it is subtracted.
        strength: what v is multiplied by.

    Raises:
        ToxlocError: a strength or a direction that is not finite.

    Source: Rimsky et al. 2024, arXiv:2312.06681 (CAA: means over many texts); Turner et al. 2023, arXiv:2308.10248
    (ActAdd: one pair). Both add a vector to make a model say more of something; here it is taken off.

    Example:
        >>> s = Steering(direction, layer=4, strength=1.5)      # doctest: +SKIP
        >>> with s.applied(lm): ...                             # doctest: +SKIP
    """

    kind: ClassVar[str] = "steering"

    def __init__(self, direction: Float[Tensor, " d_model"], layer: int, strength: float):
        super().__init__()
        if not math.isfinite(strength) or not direction.isfinite().all():
            raise ToxlocError(f"Steering needs a finite direction and strength; the strength is {strength}, and "
                              f"{int((~direction.isfinite()).sum())} numbers of the direction are not finite.")
        self.direction, self.layer, self.strength = direction.float(), int(layer), float(strength)

    def __repr__(self) -> str:
        return f"Steering(layer={self.layer}, strength={self.strength:g})"

    @classmethod
    def fit(cls, lm: LoadedModel, pairs: ContrastSet, *, layer: int | None = None, strength: float | None = None,
            budget: float | Budget | None = 0.01, neutral: NeutralText | None = None) -> "Steering":
        """Find the direction and its strength.

        Args:
            lm: the model; unchanged when this returns.
            pairs: the texts whose means are compared; they need not be paired.
            layer: the block after which to read and to subtract; by default the middle one, n_layers // 2.
            strength: sets the strength outright; the budget is then not asked.
            budget: the strength is the largest that costs no more than this on `neutral.tune`; a number is the relative
                rise of perplexity. None for a strength of 1, the whole difference.
            neutral: everyday text to tune on; by default the built-in one.

        Raises:
            ToxlocError: no such layer, no difference between the two sides, no strength within the budget.

        Example:
            >>> s = Steering.fit(lm, toxloc.load_contrast(), budget=0.01)      # doctest: +SKIP
        """
        layer = lm.n_layers // 2 if layer is None else layer
        check_layers(lm, [layer])
        limits = None if strength is not None or budget is None else Budget.of(budget)
        (toxic, neutral_side), = both_sides(lm, pairs, [layer])
        v = mean_difference(toxic, neutral_side).float()

        def scaled(strength: float) -> "Steering":
            steering = cls(v, layer, strength)
            steering.note_fit(lm, {"strength": strength, "direction_norm": float(v.norm())}, pairs)
            return steering

        if limits is None:
            return scaled(1.0 if strength is None else strength)
        return tune(lm, scaled, limits, neutral, first=1.0)

    def config(self) -> dict[str, Any]:
        """Return layer and strength; the direction is in the tensors."""
        return {"layer": self.layer, "strength": self.strength}

    def check(self, lm: LoadedModel) -> None:
        """Raise ToxlocError if the layer is not in the model or the direction has another length."""
        check_layers(lm, [self.layer])
        check_width(lm, self, self.direction)

    def _install(self, lm: LoadedModel, stack: ExitStack) -> None:
        step = (self.strength * self.direction).to(lm.device_of(self.layer))
        change(lm, residual(lm, self.layer), lambda x: x - step, stack)

    def _tensors(self) -> dict[str, Tensor]:
        return {"direction": self.direction}

    @classmethod
    def _restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> "Steering":
        return cls(tensors["direction"], config["layer"], config["strength"])
