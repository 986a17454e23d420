"""A rank-one change of the weight of a site."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..models.sites import AnySite, Site

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class RankOne:
    """A rank-one change u vᵀ of the weight of a site; an integer as `layer` means that layer's W_out."""

    layer: AnySite
    u: Float[Tensor, " d_in"]
    v: Float[Tensor, " d_model"]

    @property
    def site(self) -> Site:
        """The site that is changed."""
        return Site.of(self.layer)

    def scaled(self, strength: float) -> RankOne:
        """Return strength * u vᵀ."""
        return RankOne(self.layer, strength * self.u, self.v)
