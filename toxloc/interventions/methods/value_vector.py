"""Toxic value vectors: subtract a toxicity probe, or a direction of W_out close to it, near the end of the model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ...errors import ToxlocError
from ...support.settings import option
from ..residual_shift import ResidualShift
from ..settings import StrengthSettings

if TYPE_CHECKING:
    from jaxtyping import Float, Float64
    from torch import Tensor

    from ...models.loaded import LoadedModel
    from ...models.sites import Site
    from ..evidence import Evidence

STACKED = 512  # number of rows of W_out whose first singular vector is taken


class ValueVectorSettings(StrengthSettings):
    """Settings of value vectors.

    The paper's strengths (its alpha) for GPT-2 medium are 50 (probe), 20 (row) and 100 (svd). They can be too large for
    other models, since the norm of the residual stream differs between models.
    """

    strength: float | None = option(
        None, "fixed strength (the paper's alpha); if given, the budget is not used", allow_inf_nan=False
    )
    source: Literal["probe", "row", "svd"] = option(
        "probe",
        "direction to subtract: a linear probe for toxicity (probe), the row of W_out closest to the probe (row), or "
        "the first singular vector of the rows closest to the probe (svd)",
    )


class ValueVector(ResidualShift):
    """Subtract strength * v from the residual stream after one block; v has length 1 and points to toxic text.

    `ValueVector.fit` uses the block before the last and one of three directions:

    * "probe": the weights of a logistic regression that separates toxic from neutral texts by the residual stream after
      that block, averaged over a text's real tokens except the first. The probe is fitted after the block where it is
      subtracted, since a direction that separates the texts after another block need not separate them there.
    * "row": the row of W_out, over all layers, with the largest cosine similarity to the probe: the output direction of
      the neuron that is closest to the probe.
    * "svd": the first left singular vector of the matrix [d_model, 512] whose columns are the 512 rows with the largest
      cosine similarity to the probe (all rows if there are fewer), with the sign that agrees with the probe.

    Where a norm follows the MLP (gemma2, gemma3, olmo2), each row is first multiplied by the gain of that norm, since
    only the product is added to the residual stream.

    Args:
        direction: the vector v; of length 1.
        layer: block after which v is subtracted.
        strength: factor of v; the paper's alpha.
        source: origin of the direction, for files and reports.

    Raises:
        ToxlocError: a direction not of length 1, or a strength that is not finite.

    Source: Lee et al. 2024, arXiv:2401.01967.

    Example:
        >>> v = ValueVector.fit(lm, toxloc.load_contrast(), source="svd")      # doctest: +SKIP
        >>> with v.applied(lm): ...                                            # doctest: +SKIP
    """

    kind: ClassVar[str] = "value-vector"
    title: ClassVar[str] = "value vector"
    paper: ClassVar[str] = "toxic value vectors, Lee et al. 2024, arXiv:2401.01967"
    Settings = ValueVectorSettings

    def __init__(self, direction: Float[Tensor, " d_model"], layer: int, strength: float, *, source: str = "custom"):
        from ..directions import check_unit

        check_unit(direction)
        if not math.isfinite(strength):
            raise ToxlocError(f"The strength, the factor of the subtracted direction, must be finite, not {strength}.")
        super().__init__(direction, layer, strength)
        self.source = source

    def __repr__(self) -> str:
        return f"ValueVector({self.source}, layer={self.layer}, strength={self.strength:g})"

    @classmethod
    def _fit(cls, evidence: Evidence, settings: ValueVectorSettings) -> ValueVector:
        import torch

        from ..directions import mean_difference, probe

        lm, source = evidence.lm, settings.source
        if lm.n_layers < 2:
            raise ToxlocError(f"{lm.name} has a single block, so there is no block before the last; use Steering.")
        layer = lm.n_layers - 2
        ((toxic, neutral),) = evidence.residual_sides([layer])
        gap = mean_difference(toxic, neutral).norm()
        v, known = evidence.remember(("probe", layer), lambda: probe(toxic, neutral)), {}
        if source != "probe":
            places, cosines = _closest_rows(lm, v, STACKED if source == "svd" else 1)
            rows = torch.stack([_written(lm, site, lm.W_out(site)[j]).cpu() for site, j in places]).double()
            direction = rows[0] / rows[0].norm() if source == "row" else torch.linalg.svd(rows.T, False).U[:, 0]
            known = {
                "closest_neuron": [_key(places[0][0]), places[0][1]],
                "closest_cosine": cosines[0],
                "n_rows": len(rows),
                "cosine_to_probe": abs(float(direction @ v)),
            }
            v = direction * (direction @ v).sign()

        def scaled(strength: float) -> ValueVector:
            vector = cls(v.float(), layer, strength, source=source)
            vector.note_fit(lm, {"strength": strength, **known})
            return vector

        return evidence.at_strength(scaled, settings, first=float(gap))

    def config(self) -> dict[str, Any]:
        """Return the settings; the direction is in the tensors."""
        return {"source": self.source, "layer": self.layer, "strength": self.strength}

    @classmethod
    def _restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> ValueVector:
        strength = config["strength"] if "strength" in config else config["alpha"]  # version 0.1 wrote alpha
        return cls(tensors["direction"], config["layer"], strength, source=config["source"])


def _key(site: Site) -> int | str:
    """Return the layer of an MLP, and the name of another site."""
    return site.layer if site.part == "mlp" else str(site)


def _written(lm: LoadedModel, site: Site, rows: Float[Tensor, "*some d_model"]) -> Float[Tensor, "*some d_model"]:
    """Return what rows of W_out add to the residual stream, up to scale: the rows times the gain of a norm after it."""
    view = lm.at(site)
    if view.norm is None:
        return rows.detach().float()
    return rows.detach().float() * (view.norm_offset + view.norm.get_parameter("weight").float())


def _closest_rows(
    lm: LoadedModel, v: Float64[Tensor, " d_model"], count: int
) -> tuple[list[tuple[Site, int]], list[float]]:
    """Return (site, neuron) of the at most `count` rows with the largest cosine similarity to v, and those values."""
    import torch

    target, places = v.float()[None], []
    for site in lm.sites_of_choice("mlp"):
        W = lm.W_out(site)
        cosines = torch.cosine_similarity(_written(lm, site, W), target.to(W.device)).cpu()
        best = cosines.topk(min(count, len(cosines)))
        places += [(value, site, j) for value, j in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
    places.sort(key=lambda place: -place[0])
    return [(site, j) for _, site, j in places[:count]], [value for value, _, _ in places[:count]]
