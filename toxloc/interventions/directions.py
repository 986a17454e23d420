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
    """Return x (I - strength VᵀV): x minus strength times its projection on the orthonormal rows of V."""
    return x - strength * (x @ V.T) @ V


def check_strength(strength: float) -> None:
    """Raise ToxlocError unless the strength is over 0 and at most 1."""
    if not 0 < strength <= 1:
        raise ToxlocError(
            f"The strength of a projection must be over 0 (no change) and at most 1 (projected out), not {strength}."
        )


def residual_sides(
    lm: LoadedModel, pairs: ContrastSet, layers: Sequence[int]
) -> list[tuple[Float64[Tensor, "n_toxic d_model"], Float64[Tensor, "n_neutral d_model"]]]:
    """Return the residual stream after each layer: a row per text, the mean over its real tokens except the first.

    Raises:
        ToxlocError: the residual stream is not finite.
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
    """Return the mean of the toxic rows minus the mean of the neutral rows.

    Raises:
        ToxlocError: the two means are equal up to rounding errors of float32.
    """
    v = toxic.mean(0) - neutral.mean(0)
    if v.norm() <= 1e-5 * neutral.mean(0).norm():
        raise ToxlocError(
            "The residual stream has the same mean on the toxic and on the neutral texts, so there is no "
            "direction between the two means; give other contrast texts."
        )
    return v


def check_width(lm: LoadedModel, intervention: object, direction: Float[Tensor, "*some d_model"]) -> None:
    """Raise ToxlocError if the directions do not have the width of the model's residual stream."""
    if direction.shape[-1] != lm.d_model:
        raise ToxlocError(
            f"{intervention!r} is for d_model={direction.shape[-1]}; {lm.name} has "
            f"d_model={lm.d_model}. Fit it on this model."
        )


def probe(
    toxic: Float64[Tensor, "n_toxic d_model"], neutral: Float64[Tensor, "n_neutral d_model"]
) -> Float64[Tensor, " d_model"]:
    """Return the weights, scaled to length 1, of a logistic regression that separates toxic from neutral rows.

    The regression is scikit-learn's, with its L2 penalty of 1. The rows are first centred and divided by their common
    root mean square, so that the penalty has the same effect in every model.
    """
    from sklearn.linear_model import LogisticRegression  # slow to import

    rows = torch.cat([toxic, neutral])
    rows = rows - rows.mean(0)
    rows = rows / rows.square().mean().sqrt()
    labels = np.repeat([1, 0], [len(toxic), len(neutral)])
    w: Tensor = torch.from_numpy(LogisticRegression(max_iter=10_000).fit(rows.numpy(), labels).coef_[0])
    return w / float(w.norm())


def check_unit(direction: Float[Tensor, " d_model"]) -> None:
    """Raise ToxlocError unless the direction has length 1, up to rounding errors of float32."""
    norm = float(direction.double().norm())
    if not abs(norm - 1) < 1e-4:
        raise ToxlocError(f"The direction must have length 1, not {norm:.6g}; divide it by its norm.")
