"""The values of one score at all sites, and their computation under resampled texts."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from ..errors import ToxlocError
from ..models.sites import Site
from .contributions import Contributions
from .statistics import ContrastStatistics
from .uncertainty import Uncertainty, Weights


class Scored(NamedTuple):
    """The values of one score, in the order of `ContrastStatistics.sites`.

    Attributes:
        sites: score of each site, float64 [n_sites].
        units: scores of the units of each site, float64 [n_units].
        draws: scores of the sites under each draw of each given `Weights`, float64 [draws, n_sites] (twice as many
            under shuffled labels, for scores of pairs); None if the score cannot be computed from groups of texts.
    """

    sites: Float64[np.ndarray, " n_sites"]
    units: list[Float64[np.ndarray, " _n_units"]]
    draws: list[Float64[np.ndarray, "draws n_sites"]] | None


def joined(name: str, groups: Sequence[Scored]) -> Scored:
    """Join the values of a score at several groups of sites into those at all of them."""
    if name == "combined":  # its units are multiplied by the share of the site in the positive scores of the group
        positive = [np.maximum(scored.sites, 0).sum(keepdims=True) for scored in groups]
        shares = [ratio(own, np.sum(positive, axis=0)) for own in positive]
        groups = [
            scored._replace(units=[units * share for units in scored.units])
            for scored, share in zip(groups, shares, strict=True)
        ]
    draws = None
    if all(scored.draws is not None for scored in groups):
        draws = [
            np.concatenate(drawn, axis=1) for drawn in zip(*(scored.draws or [] for scored in groups), strict=True)
        ]
    return Scored(
        np.concatenate([scored.sites for scored in groups]), [unit for scored in groups for unit in scored.units], draws
    )


def both_contributions(s: ContrastStatistics) -> tuple[Contributions, Contributions]:
    """Return the contributions of the groups of toxic texts and of neutral texts.

    Raises:
        ToxlocError: the statistics were gathered without moments.
    """
    if s.toxic.contributions is None or s.neutral.contributions is None:
        raise ToxlocError(
            "These statistics have no moments, which every score needs; gather them with "
            "collect_contrast(moments=True)."
        )
    return s.toxic.contributions, s.neutral.contributions


def both_sides(toxic: Tensor, neutral: Tensor) -> np.ndarray:
    """Concatenate the groups of both sides, toxic groups first."""
    return torch.cat([toxic, neutral]).double().cpu().numpy()


def over_sites(
    s: ContrastStatistics,
    weights: Sequence[Weights],
    site_score: Callable[[Site, Weights], np.ndarray],
    units: list[Float64[np.ndarray, " _n_units"]],
) -> Scored:
    """Compute the score of every site for the observed texts and under every draw."""
    observed = Weights.observed(*(len(side.tokens) for side in both_contributions(s)))
    values = [[site_score(site, w) for site in s.sites] for w in (observed, *weights)]
    return Scored(np.array(values[0])[:, 0], units, [np.stack(drawn, axis=1) for drawn in values[1:]])


def mean_difference(
    sums: Float64[np.ndarray, "groups d"], counts: Float64[np.ndarray, " groups"], w: Weights
) -> Float64[np.ndarray, "draws d"]:
    """Mean over toxic tokens minus mean over neutral tokens, for every draw."""
    shares = [side / np.maximum(side @ counts, 1)[:, None] for side in (w.toxic, w.neutral)]
    difference: np.ndarray = (shares[0] - shares[1]) @ sums
    return difference


def mean_over_pairs(
    sums: Float64[np.ndarray, "groups d"], counts: Float64[np.ndarray, " groups"], w: Weights
) -> Float64[np.ndarray, "_draws d"]:
    """Mean over pairs of values that change sign if the two texts of a pair swap labels, for every draw.

    Under shuffled labels, the draws are followed by the same draws with all labels swapped, which are as likely. So the
    null distribution is symmetric around 0, also with few pairs.

    Args:
        sums: sum of the values over the pairs of each group.
        counts: number of pairs of each group.
        w: the draws, in which both sides of a group of pairs are drawn together.
    """
    toxic, neutral = w.toxic[:, : len(counts)], w.neutral[:, : len(counts)]  # the toxic halves of all groups
    mean: np.ndarray = (toxic - neutral) @ sums / np.maximum((toxic + neutral) @ counts, 1)[:, None]
    return np.concatenate([mean, -mean]) if w.null else mean


def estimate_over_pairs(
    sums: Float64[np.ndarray, "groups d"], counts: Float64[np.ndarray, " groups"], draws: int, seed: int
) -> tuple[Float64[np.ndarray, " d"], Uncertainty | None]:
    """Mean over pairs of values that change sign if the two texts of a pair swap labels, and its uncertainty.

    Args:
        sums: sum of the values over the pairs of each group.
        counts: number of pairs of each group.
        draws: number of bootstrap draws and of sign flips; without draws, the uncertainty is None.
        seed: seed for the draws.
    """
    n = len(counts)
    mean = mean_over_pairs(sums, counts, Weights.observed(n, n))[0]
    if not draws:
        return mean, None
    resampled, null = (
        mean_over_pairs(sums, counts, make(n, n, True, draws, seed)) for make in (Weights.bootstrap, Weights.shuffled)
    )
    return mean, Uncertainty.of(mean, resampled, null, signed=True)


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Divide; 0 where the divisor is 0, as for an element that never varies."""
    out = np.zeros(np.broadcast_shapes(above.shape, below.shape))
    quotient: np.ndarray = np.divide(above, below, out=out, where=below > 0)
    return quotient
