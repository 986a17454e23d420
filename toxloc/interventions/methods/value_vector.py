"""Toxic value vectors: subtract a direction that reads as toxic, or that MLPs write, near the end of the model."""

import math
from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ...errors import ToxlocError
from ...models.activations import change, residual
from ...models.architectures import architecture
from ...models.loaded import LoadedModel
from ...texts.contrast import ContrastSet
from ...texts.neutral import NeutralText
from ..base import Intervention, check_layers
from ..budget import Budget
from ..directions import both_sides, check_unit, check_width, mean_difference, probe
from ..tuning import tune

ALPHAS = {"probe": 50.0, "row": 20.0, "svd": 100.0}  # by source: the paper's, for GPT-2 medium
STACKED = 512  # rows whose first singular vector is taken


class ValueVector(Intervention):
    """Subtract alpha * v, v of length 1 and pointing to toxic, from the residual stream after one block.

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
        alpha: how much of it.
        source: where it comes from, for files and reports.

    Raises:
        ToxlocError: a direction not of length 1, an alpha that is not finite.

    Source: Lee et al. 2024, arXiv:2401.01967.

    Example:
        >>> v = ValueVector.fit(lm, toxloc.load_contrast(), source="svd")      # doctest: +SKIP
        >>> with v.applied(lm): ...                                            # doctest: +SKIP
    """

    kind: ClassVar[str] = "value-vector"

    def __init__(self, direction: Float[Tensor, " d_model"], layer: int, alpha: float, *, source: str = "custom"):
        super().__init__()
        check_unit(direction)
        if not math.isfinite(alpha):
            raise ToxlocError(f"alpha is how much of the direction is subtracted and must be finite, not {alpha}.")
        self.direction, self.layer, self.alpha, self.source = direction.float(), int(layer), float(alpha), source

    def __repr__(self) -> str:
        return f"ValueVector({self.source}, layer={self.layer}, alpha={self.alpha:g})"

    @classmethod
    def fit(cls, lm: LoadedModel, pairs: ContrastSet, *, source: str = "probe", alpha: float | None = None,
            budget: float | Budget | None = 0.01, neutral: NeutralText | None = None) -> "ValueVector":
        """Find the direction and its alpha.

        Args:
            lm: the model; unchanged when this returns.
            pairs: the texts that the probe learns to tell apart; they need not be paired.
            source: "probe", "row" or "svd", see the class.
            alpha: sets alpha outright; the budget is then not asked.
            budget: alpha is the largest that costs no more than this on `neutral.tune`; a number is the relative rise
                of perplexity. None for the paper's alpha for GPT-2 medium: 50 (probe), 20 (row), 100 (svd), which other
                models need not bear, since their residual streams have other lengths.
            neutral: everyday text to tune on; by default the built-in one.

        Raises:
            ToxlocError: an unknown source, a model of a single block, no difference between the two sides, no alpha
                within the budget.
        """
        if source not in ALPHAS:
            raise ToxlocError(f"Unknown source {source!r}; choose one of {', '.join(ALPHAS)}.")
        if lm.n_layers < 2:
            raise ToxlocError(f"{lm.name} has a single block, so there is none before the last; use Steering.")
        limits = None if alpha is not None or budget is None else Budget.of(budget)
        layer = lm.n_layers - 2
        (toxic, neutral_side), = both_sides(lm, pairs, [layer])
        gap = mean_difference(toxic, neutral_side).norm()
        v, found = probe(toxic, neutral_side), {}
        if source != "probe":
            places, cosines = _closest_rows(lm, v, STACKED if source == "svd" else 1)
            rows = torch.stack([_written(lm, i, lm.W_out(i)[j]) for i, j in places]).cpu().double()
            direction = rows[0] / rows[0].norm() if source == "row" else torch.linalg.svd(rows.T, False).U[:, 0]
            found = {"closest_neuron": list(places[0]), "closest_cosine": cosines[0], "n_rows": len(rows),
                     "cosine_to_probe": abs(float(direction @ v))}
            v = direction * (direction @ v).sign()

        def scaled(alpha: float) -> "ValueVector":
            vector = cls(v.float(), layer, alpha, source=source)
            vector.note_fit(lm, {"strength": alpha, **found}, pairs)
            return vector

        if limits is None:
            return scaled(ALPHAS[source] if alpha is None else alpha)
        return tune(lm, scaled, limits, neutral, first=float(gap))

    def config(self) -> dict[str, Any]:
        """Return the settings; the direction is in the tensors."""
        return {"source": self.source, "layer": self.layer, "alpha": self.alpha}

    def check(self, lm: LoadedModel) -> None:
        """Raise ToxlocError if the layer is not in the model or the direction has another length."""
        check_layers(lm, [self.layer])
        check_width(lm, self, self.direction)

    def _install(self, lm: LoadedModel, stack: ExitStack) -> None:
        step = (self.alpha * self.direction).to(lm.device_of(self.layer))
        change(lm, residual(lm, self.layer), lambda x: x - step, stack)

    def _tensors(self) -> dict[str, Tensor]:
        return {"direction": self.direction}

    @classmethod
    def _restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> "ValueVector":
        return cls(tensors["direction"], config["layer"], config["alpha"], source=config["source"])


def _written(lm: LoadedModel, layer: int, rows: Float[Tensor, "*some d_model"]) -> Float[Tensor, "*some d_model"]:
    """What rows of W_out add to the residual stream, up to their common size: times the gain of a norm that follows."""
    family = architecture(lm.model_type)
    if not family.post_norm:
        return rows.detach().float()
    gain = lm.contribution(layer).get_parameter("weight")
    return rows.detach().float() * (family.norm_offset + gain.float())


def _closest_rows(lm: LoadedModel, v: Float64[Tensor, " d_model"], count: int
                  ) -> tuple[list[tuple[int, int]], list[float]]:
    """(layer, neuron) of the rows with the largest cosine similarity to v, at most `count`, best first; and theirs."""
    count = min(count, lm.n_layers * lm.d_mlp)
    target = v.float()[None]
    cosines = torch.stack([torch.cosine_similarity(_written(lm, layer, W), target.to(W.device)).cpu()
                           for layer in range(lm.n_layers) for W in [lm.W_out(layer)]])
    best = cosines.flatten().topk(count)
    return [divmod(int(i), lm.d_mlp) for i in best.indices], best.values.tolist()
