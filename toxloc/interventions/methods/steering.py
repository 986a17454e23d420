"""Activation steering: subtract the mean difference of toxic and neutral texts from the residual stream."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import ToxlocError
from ...support.settings import option
from ..base import check_layers
from ..residual_shift import ResidualShift
from ..settings import StrengthSettings

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from ..evidence import Evidence


class SteeringSettings(StrengthSettings):
    """Settings of steering; a strength of 1 subtracts the whole difference."""

    strength: float | None = option(
        None, "fixed strength, 1 for the whole difference; if given, the budget is not used", allow_inf_nan=False
    )
    layer: int | None = option(
        None, "block after which the direction is computed and subtracted; default: the middle block", ge=0
    )


class Steering(ResidualShift):
    """Subtract strength * v from the residual stream after one block, at every position.

    v [d_model] is the mean of x over toxic texts minus the mean of x over neutral texts, where x is the residual stream
    after that block, averaged over a text's real tokens except the first. A strength of 1 subtracts the whole
    difference; a negative strength adds to it.

    `Steering.fit` computes the direction from texts; the constructor takes a given direction.

    Args:
        direction: the vector v.
        layer: block after which v is subtracted.
        strength: factor of v.

    Raises:
        ToxlocError: a strength or a direction that is not finite.

    Source: Rimsky et al. 2024, arXiv:2312.06681 (CAA: means over many texts); Turner et al. 2023, arXiv:2308.10248
    (ActAdd: one pair). Both add a vector to strengthen a property of the text; here the vector is subtracted.

    Example:
        >>> s = Steering(direction, layer=4, strength=1.5)      # doctest: +SKIP
        >>> with s.applied(lm): ...                             # doctest: +SKIP
    """

    kind: ClassVar[str] = "steering"
    title: ClassVar[str] = "mean-difference steering"
    paper: ClassVar[str] = "mean-difference steering (CAA), Rimsky et al. 2024, arXiv:2312.06681"
    Settings = SteeringSettings

    def __init__(self, direction: Float[Tensor, " d_model"], layer: int, strength: float):
        if not math.isfinite(strength) or not direction.isfinite().all():
            raise ToxlocError(
                f"Steering needs a finite direction and strength; the strength is {strength}, and "
                f"{int((~direction.isfinite()).sum())} numbers of the direction are not finite."
            )
        super().__init__(direction, layer, strength)

    def __repr__(self) -> str:
        return f"Steering(layer={self.layer}, strength={self.strength:g})"

    @classmethod
    def _fit(cls, evidence: Evidence, settings: SteeringSettings) -> Steering:
        from ..directions import mean_difference

        lm = evidence.lm
        layer = lm.n_layers // 2 if settings.layer is None else settings.layer
        check_layers(lm, [layer])
        ((toxic, neutral),) = evidence.residual_sides([layer])
        v = mean_difference(toxic, neutral).float()

        def scaled(strength: float) -> Steering:
            steering = cls(v, layer, strength)
            steering.note_fit(lm, {"strength": strength, "direction_norm": float(v.norm())})
            return steering

        return evidence.at_strength(scaled, settings, first=1.0)

    def config(self) -> dict[str, Any]:
        """Return the layer and the strength; the direction is in the tensors."""
        return {"layer": self.layer, "strength": self.strength}

    @classmethod
    def _restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Steering:
        return cls(tensors["direction"], config["layer"], config["strength"])
