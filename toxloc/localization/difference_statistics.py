"""What each site and unit adds to the log-probability difference of pairs at their first difference.

The two texts of a pair share a prefix. After it, let D = log p(toxic token) - log p(neutral token), in nats. A site
computes m = a @ W + b from its keys `a`; μ is a baseline for its keys, such as their mean over neutral text. One pass
over the prefixes computes for every unit and pair, with the sum over the positions of the prefix and the unit's keys,

    <dD/da, a - μ>.

To first order, it is how much D falls if the unit's activation is replaced by the baseline: positive where the unit
pushes towards the toxic token. The value of a site is the sum over its units. Nothing is cached: values are summed over
all pairs for each unit, and over small groups of pairs for each site, so memory does not grow with the number of pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from ..models.loaded import LoadedModel
from ..models.sites import AnySite, BySite
from ..support.progress import track
from .activation import Activation
from .attribution_pass import AttributionPass
from .contributions import GROUPS_OF_PAIRS, random_groups
from .first_difference import FirstDifferences
from .pair_batch import PairReader


@dataclass
class DifferenceStatistics:
    """The result of one pass over the shared prefixes of pairs.

    Attributes:
        n_pairs: number of pairs read.
        difference: mean over pairs of D, in nats.
        counts: number of pairs read of each group of pairs, float64 [groups].
        sites: sum over the pairs of each group of the site's value, float64 [groups], by site.
        units: mean over pairs of the value of every unit, float64 [n_units], by site.
    """

    n_pairs: int
    difference: float
    counts: Float64[np.ndarray, " groups"]
    sites: BySite[Float64[np.ndarray, " groups"]]
    units: BySite[Float64[np.ndarray, " _n_units"]]


def collect_differences(
    lm: LoadedModel,
    differences: FirstDifferences,
    *,
    sites: Sequence[AnySite],
    group: Int64[np.ndarray, " n"] | None = None,
    baseline: BySite[Float[Tensor, " _d_in"]] | None = None,
    skip_first: bool = False,
) -> DifferenceStatistics:
    """Attribute the log-probability difference at the first difference to sites and units, in one pass over the pairs.

    Args:
        lm: the model, which is left unchanged.
        differences: the pairs.
        sites: the sites.
        group: group of each usable pair; by default random, at most 512 groups of nearly equal size.
        baseline: baseline μ of the keys of each site, such as their mean over neutral text; None for zero. Of a routed
            expert, only the tokens that are routed to it are compared with the baseline.
        skip_first: leave the first position out of the sum over positions. By default it counts: where it is an
            attention sink, its activations are huge but the gradients with respect to them are small.

    Example:
        >>> from toxloc import load_contrast, load_model
        >>> from toxloc.localization.first_difference import first_differences
        >>> lm, pairs = load_model(), load_contrast().limited(20)
        >>> differences = first_differences(lm, pairs)
        >>> s = collect_differences(lm, differences, sites=[3])
        >>> s.units[3].shape, bool(np.isclose(s.units[3].sum(), s.sites[3].sum() / s.n_pairs, rtol=1e-3))
        ((1024,), True)
    """
    usable = differences.usable
    if group is None:
        group = groups_of_pairs(len(usable))
    activations = [Activation.keys(lm, site) for site in sites]
    views = [lm.at(site) for site in sites]
    n_groups, total = int(group.max()) + 1, 0.0
    sums = BySite({view.site: np.zeros(n_groups) for view in views})
    units = BySite({view.site: np.zeros(view.n_units) for view in views})
    for activation, view in zip(activations, views, strict=True):
        if baseline is not None:
            activation.constant = baseline[view.site].float()

    def add(activation: Activation, values: Float[Tensor, "pairs d_in"]) -> None:
        view = activation.view
        assert view is not None
        np.add.at(sums[view.site], group[index], values.sum(1).cpu().double().numpy())
        units[view.site] += view.per_unit(values.sum(0)).cpu().double().numpy() / len(usable)

    reader = PairReader(
        lm, usable, "zero" if baseline is None else "mean", "first", skip_first=skip_first, gradients=True
    )
    attribution = AttributionPass(lm, activations, add)
    with attribution.hooked():
        for index in track(reader.groups(), "first differences"):
            total += float(attribution.read(reader.batch(index)).sum())
    counts = np.bincount(group, minlength=n_groups).astype(np.float64)
    return DifferenceStatistics(len(usable), total / len(usable), counts, sums, units)


def groups_of_pairs(n_pairs: int) -> Int64[np.ndarray, " n_pairs"]:
    """Return a random group for each of some pairs; at most 512 groups of nearly equal size."""
    return random_groups(n_pairs, n_pairs, paired=True, limit=GROUPS_OF_PAIRS)[0]
