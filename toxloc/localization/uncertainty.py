"""Uncertainty of layer scores: bootstrap intervals over texts, and null distributions from shuffled labels."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float64

DRAWS = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Weights:
    """How often each group of texts counts as toxic and as neutral in every draw. Toxic groups come first.

    Attributes:
        toxic: number of times that a group counts as toxic, float64 [draws, groups].
        neutral: number of times that a group counts as neutral, float64 [draws, groups].
        null: whether the labels are shuffled.
    """

    toxic: Float64[np.ndarray, "draws groups"]
    neutral: Float64[np.ndarray, "draws groups"]
    null: bool

    @classmethod
    def observed(cls, n_toxic: int, n_neutral: int) -> "Weights":
        """Return a single draw in which every group counts once, with its true label."""
        side = np.r_[np.ones(n_toxic), np.zeros(n_neutral)][None]
        return cls(side, 1 - side, null=False)

    @classmethod
    def bootstrap(cls, n_toxic: int, n_neutral: int, paired: bool, draws: int = DRAWS, seed: int = 0) -> "Weights":
        """Resample the groups of each side with replacement; the two halves of a pair are resampled together."""
        rng = np.random.default_rng([seed, 1])
        toxic = rng.multinomial(n_toxic, np.full(n_toxic, 1 / n_toxic), size=draws).astype(np.float64)
        neutral = toxic if paired else rng.multinomial(n_neutral, np.full(n_neutral, 1 / n_neutral), size=draws)
        left, right = np.zeros((draws, n_toxic)), np.zeros((draws, n_neutral))
        return cls(np.c_[toxic, right], np.c_[left, neutral], null=False)

    @classmethod
    def shuffled(cls, n_toxic: int, n_neutral: int, paired: bool, draws: int = DRAWS, seed: int = 0) -> "Weights":
        """Shuffle the labels of the groups; in a paired set, the two halves of a pair swap labels or keep them."""
        rng = np.random.default_rng([seed, 2])
        if paired:
            stays = rng.random((draws, n_toxic)) < 0.5
            toxic = np.c_[stays, ~stays].astype(np.float64)
        else:
            side = np.r_[np.ones(n_toxic), np.zeros(n_neutral)]
            toxic = rng.permuted(np.tile(side, (draws, 1)), axis=1)
        return cls(toxic, 1 - toxic, null=True)


@dataclass(frozen=True)
class Uncertainty:
    """Uncertainty of one score in every layer; all fields are float64 [n_layers].

    Attributes:
        low: lower end of the 95% interval.
        high: upper end of the 95% interval. Intervals are basic bootstrap intervals over texts (twice the score minus a
            quantile). They remove the bias that a norm or a maximum has on few texts; this bias can be so large that
            the score lies above its interval.
        null_mean: mean of the null distribution, the scores under shuffled labels.
        null_sd: standard deviation of the null distribution.
        z: (score - null_mean) / null_sd.
        p: p-value: share of shuffles with a score at least as large (for a signed score: at least as far from
            null_mean).
        p_adjusted: p-value adjusted for testing all layers: share of shuffles whose largest z over all layers is at
            least as large (Westfall and Young's single-step maxT).
    """

    low: Float64[np.ndarray, " n_layers"]
    high: Float64[np.ndarray, " n_layers"]
    null_mean: Float64[np.ndarray, " n_layers"]
    null_sd: Float64[np.ndarray, " n_layers"]
    z: Float64[np.ndarray, " n_layers"]
    p: Float64[np.ndarray, " n_layers"]
    p_adjusted: Float64[np.ndarray, " n_layers"]

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of the fields, in order."""
        return tuple(field.name for field in fields(cls))

    def at(self, places: Sequence[int]) -> "Uncertainty":
        """Return the uncertainty of some of the layers."""
        return Uncertainty(*(getattr(self, name)[list(places)] for name in self.names()))

    @classmethod
    def of(
        cls,
        score: Float64[np.ndarray, " n_layers"],
        resampled: Float64[np.ndarray, "draws n_layers"],
        null: Float64[np.ndarray, "shufflings n_layers"],
        signed: bool,
        bounds: tuple[float, float] = (-np.inf, np.inf),
    ) -> "Uncertainty":
        """Summarise the bootstrap and the null draws of a score.

        Args:
            score: score of the observed texts.
            resampled: scores under the bootstrap draws.
            null: scores under shuffled labels.
            signed: whether negative values are meaningful; p is then two-sided.
            bounds: smallest and largest possible score, to which the interval is clipped.
        """
        tail = (1 - CONFIDENCE) / 2
        low, high = (2 * score - np.quantile(resampled, q, axis=0) for q in (1 - tail, tail))
        mean, sd = null.mean(0), null.std(0)
        scale = np.where(sd > 0, sd, np.inf)
        z, z_null = (score - mean) / scale, (null - mean) / scale
        size, size_null = (np.abs(z), np.abs(z_null)) if signed else (z, z_null)
        slack = 1e-9  # a shuffle that restores the observed labels counts as at least as large
        return cls(
            np.clip(low, *bounds),
            np.clip(high, *bounds),
            mean,
            sd,
            z,
            p=_share(size_null >= size - slack),
            p_adjusted=_share(size_null.max(1, keepdims=True) >= size - slack),
        )


def _share(as_large: np.ndarray) -> Float64[np.ndarray, " n_layers"]:
    """Share of draws. The observed labels count as one of them, so that the share is never 0."""
    share: np.ndarray = (1.0 + as_large.sum(0)) / (1.0 + len(as_large))
    return share
