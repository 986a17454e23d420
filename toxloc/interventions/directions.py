"""Directions in the residual stream: means, probes, and projections."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ..errors import ToxlocError
from ..models.activations import pooled, residual
from ..models.loaded import LoadedModel
from ..texts.contrast import ContrastSet


def without(
    x: Float[Tensor, "*some d_model"], V: Float[Tensor, "k d_model"], strength: float
) -> Float[Tensor, "*some d_model"]:
    """Return x (I - strength VᵀV): x less that share of its part along the orthonormal rows of V."""
    return x - strength * (x @ V.T) @ V


def check_strength(strength: float) -> None:
    """Raise ToxlocError unless a strength is over 0 and at most 1."""
    if not 0 < strength <= 1:
        raise ToxlocError(
            f"The strength of a projection is over 0 (left alone) and at most 1 (projected out), not {strength}."
        )


def residual_sides(
    lm: LoadedModel, pairs: ContrastSet, layers: Sequence[int]
) -> list[tuple[Float64[Tensor, "n_toxic d_model"], Float64[Tensor, "n_neutral d_model"]]]:
    """Residual stream after each of the layers: a row per text, the mean over its real tokens but the first.

    Raises:
        ToxlocError: it is not finite.
    """
    rows = pooled(
        lm, [*pairs.toxic, *pairs.neutral], [residual(lm, layer) for layer in layers], describe="residual stream"
    )
    n = len(pairs.toxic)
    for layer, x in zip(layers, rows, strict=True):
        if not x.isfinite().all():
            raise ToxlocError(
                f"The residual stream of {lm.name} after block {layer} is not finite in {lm.dtype}; load "
                "the model in float32 or bfloat16."
            )
    return [(x[:n].double(), x[n:].double()) for x in rows]


def mean_difference(
    toxic: Float64[Tensor, "n_toxic d_model"], neutral: Float64[Tensor, "n_neutral d_model"]
) -> Float64[Tensor, " d_model"]:
    """Mean of the toxic rows minus mean of the neutral ones.

    Raises:
        ToxlocError: they are the same, up to float32's rounding.
    """
    v = toxic.mean(0) - neutral.mean(0)
    if v.norm() <= 1e-5 * neutral.mean(0).norm():
        raise ToxlocError(
            "The toxic and the neutral texts leave the same mean in the residual stream, so there is no "
            "direction from one to the other; give other contrast text."
        )
    return v


def check_width(lm: LoadedModel, intervention: object, direction: Float[Tensor, "*some d_model"]) -> None:
    """Raise ToxlocError if a direction, or several, does not lie in the model's residual stream."""
    if direction.shape[-1] != lm.d_model:
        raise ToxlocError(
            f"{intervention!r} is for d_model={direction.shape[-1]}; {lm.name} has "
            f"d_model={lm.d_model}. Fit it on this model."
        )


def probe(
    toxic: Float64[Tensor, "n_toxic d_model"], neutral: Float64[Tensor, "n_neutral d_model"]
) -> Float64[Tensor, " d_model"]:
    """Direction, of length 1, of the logistic regression that tells toxic rows from neutral ones.

    scikit-learn's, with its L2 penalty of 1, after all numbers were centred and divided by one common size: the penalty
    then means the same in every model.
    """
    from sklearn.linear_model import LogisticRegression  # slow to import

    rows = torch.cat([toxic, neutral])
    rows = rows - rows.mean(0)
    rows = rows / rows.square().mean().sqrt()
    labels = np.repeat([1, 0], [len(toxic), len(neutral)])
    w: Tensor = torch.from_numpy(LogisticRegression(max_iter=10_000).fit(rows.numpy(), labels).coef_[0])
    return w / float(w.norm())


def check_unit(direction: Float[Tensor, " d_model"]) -> None:
    """Raise ToxlocError unless the direction is of length 1, up to float32's rounding."""
    norm = float(direction.double().norm())
    if not abs(norm - 1) < 1e-4:
        raise ToxlocError(f"A direction of length 1 is needed, not of {norm:.6g}; divide it by its norm.")
