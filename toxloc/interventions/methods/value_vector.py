"""Toxic value vectors: subtract a direction that reads as toxic, or that MLPs write, near the end of the model."""

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
    from ..evidence import Evidence

STACKED = 512  # rows whose first singular vector is taken


class ValueVectorSettings(StrengthSettings):
    """Settings of value vectors.

    The paper's strengths (its alpha), for GPT-2 medium, are 50 (probe), 20 (row) and 100 (svd). Other models need not
    bear these, since the size of their residual stream differs.
    """

    strength: float | None = option(
        None, "sets the strength outright (the paper's alpha); the budget is then not used", allow_inf_nan=False
    )
    source: Literal["probe", "row", "svd"] = option(
        "probe",
        "the direction: a probe, the row of W_out closest to it, or the first singular vector of the closest rows",
    )


class ValueVector(ResidualShift):
    """Subtract strength * v, v of length 1 and pointing to toxic, from the residual stream after one block.

    `ValueVector.fit` takes the block before the last and one of three directions:

    * "probe": the weights of a logistic regression that tells toxic from neutral texts by the residual stream after
      that same block, averaged over a text's real tokens but the first. It is read where it acts, since what separates
      the texts after another block need not do so there.
    * "row": the row of W_out, over all layers, with the largest cosine similarity to the probe: what the neuron writes
      that writes most nearly what the probe reads.
    * "svd": of the 512 rows with the largest such similarity (all, if there are fewer) as columns [d_model, 512], the
      first left singular vector; of its two signs the one that agrees with the probe.

    Where a norm follows the MLP (gemma2, gemma3, olmo2) a row is multiplied by that norm's gain first, since only then
    does it lie in the residual stream.

    Args:
        direction: v; of length 1.
        layer: the block after which it is subtracted.
        strength: how much of it is subtracted, the paper's alpha.
        source: where it comes from, for files and reports.

    Raises:
        ToxlocError: a direction not of length 1, a strength that is not finite.

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
            raise ToxlocError(
                f"The strength is how much of the direction is subtracted and must be finite, not {strength}."
            )
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
            raise ToxlocError(f"{lm.name} has a single block, so there is none before the last; use Steering.")
        layer = lm.n_layers - 2
        ((toxic, neutral),) = evidence.residual_sides([layer])
        gap = mean_difference(toxic, neutral).norm()
        v, known = evidence.remember(("probe", layer), lambda: probe(toxic, neutral)), {}
        if source != "probe":
            places, cosines = _closest_rows(lm, v, STACKED if source == "svd" else 1)
            rows = torch.stack([_written(lm, i, lm.W_out(i)[j]) for i, j in places]).cpu().double()
            direction = rows[0] / rows[0].norm() if source == "row" else torch.linalg.svd(rows.T, False).U[:, 0]
            known = {
                "closest_neuron": list(places[0]),
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
        strength = config["strength"] if "strength" in config else config["alpha"]  # so called in version 0.1
        return cls(tensors["direction"], config["layer"], strength, source=config["source"])


def _written(lm: LoadedModel, layer: int, rows: Float[Tensor, "*some d_model"]) -> Float[Tensor, "*some d_model"]:
    """What rows of W_out add to the residual stream, up to their common size: times the gain of a norm that follows."""
    view = lm.at(layer)
    if view.norm is None:
        return rows.detach().float()
    return rows.detach().float() * (view.norm_offset + view.norm.get_parameter("weight").float())


def _closest_rows(
    lm: LoadedModel, v: Float64[Tensor, " d_model"], count: int
) -> tuple[list[tuple[int, int]], list[float]]:
    """(layer, neuron) of the rows with the largest cosine similarity to v, at most `count`, best first; and theirs."""
    import torch

    count = min(count, lm.n_layers * lm.d_mlp)
    target = v.float()[None]
    cosines = torch.stack(
        [
            torch.cosine_similarity(_written(lm, layer, W), target.to(W.device)).cpu()
            for layer in range(lm.n_layers)
            for W in [lm.W_out(layer)]
        ]
    )
    best = cosines.flatten().topk(count)
    return [divmod(int(i), lm.d_mlp) for i in best.indices], best.values.tolist()
