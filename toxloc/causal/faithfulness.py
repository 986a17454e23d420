"""Faithfulness: how much of a model's preference for toxic text remains if only the highest-scoring units are kept.

The two texts of a pair share a prefix and then differ; D is how much more likely the model finds the toxic text (see
`patch`). m(C) is the mean of D over pairs in the model that keeps the units C, and in which a baseline replaces all
other units of the localized parts. The faithfulness of C is

    f(C) = (m(C) - m(∅)) / (m(M) - m(∅)),

with M all units and ∅ none: 0 if C keeps nothing of the preference, 1 if it keeps all of it. A score that orders units
well reaches f = 1 with few units. Two areas over the share of kept units summarise a curve, as in MIB (Mueller et al.
2025, arXiv:2504.13151): CPR and CMD.
"""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float64

from ..errors import ToxlocError
from ..localization.activation import read_means
from ..localization.difference_statistics import groups_of_pairs
from ..localization.first_difference import FEWEST_PAIRS, FirstDifference, first_differences
from ..localization.pair_batch import By, Over, PairReader
from ..localization.result import Localization
from ..localization.scored import mean_over_pairs
from ..localization.uncertainty import DRAWS, Weights
from ..models.batching import encode_rows
from ..models.loaded import AnyModel, LoadedModel
from ..models.sites import AnySite, BySite, Site
from ..support.arguments import as_list, check_kind, short_repr, whole_number
from ..support.intervals import Interval, central_interval
from ..texts.contrast import ContrastSet
from .curve import matched_order
from .faithfulness_result import MEASURES, Area, Faithfulness, FaithfulnessCurve, Order
from .knockout import unit_sizes
from .replacement import ReplacedPart, ReplacedUnits, replaced_parts
from .unit_sets import EMPTY, INTACT, UnitSets, read_sets

Level = Literal["unit", "site"]
Baseline = Literal["mean", "zero", "resample"]
OwnScores = Mapping[str, Mapping[AnySite, Any]]
FEWEST_SHARES = 2  # that enclose an area
SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # those of MIB


def faithfulness(
    lm: AnyModel,
    pairs: ContrastSet,
    loc: Localization,
    scores: Sequence[str] | OwnScores | None = None,
    *,
    level: Level = "unit",
    by: Baseline = "mean",
    over: Over = "first",
    shares: Sequence[float] = SHARES,
    controls: int = 3,
    only_preferred: bool = False,
    draws: int = DRAWS,
    seed: int = 0,
    skip_first: bool = True,
    max_length: int = 128,
) -> Faithfulness:
    """Keep, and remove, growing shares of the units in the order of each score, and measure the faithfulness f.

    The units of all localized parts are ranked together. At a share k of n units, the first ⌊k n⌋ are kept and a
    baseline replaces all others at every position that is read (or, in the order "removed", they are replaced and all
    others are kept). Parts that were not localized stay as they are. As in MIB, the area over the share is the
    trapezoidal integral on a linear scale, from the smallest share to the largest:

    * CPR: the area under f with the highest signed scores kept. Larger is better; f can exceed 1.
    * CMD: the area under |1 - f| with the largest absolute scores kept. Smaller is better.
    * For "removed", the area under f with the highest scores removed. Smaller is better.

    The random controls of a score exchange its values among units of the same site with similar activation sizes (in
    blocks of at most 16; at `level="site"`, among the sites of a part). A control chooses as many units of each site as
    the score does, so it has the score's choice of sites, but not its choice of units.

    The cost is fixed: 2 + scores × shares × 3 orders × (1 + controls) passes over the pairs at most, and one over the
    neutral texts for by="mean". Equal sets of units are read once, for example those at a share of 1.

    Args:
        lm: the model, with the interventions that are applied to it; it is left unchanged.
        pairs: a paired contrast set, held out from every score.
        loc: a localization of the same model.
        scores: names of scores of `loc`; or own scores by name, each a mapping from the sites of `loc` to one value per
            unit (at `level="site"`, to a number); by default all scores of `loc`.
        level: "unit" for neurons and heads; "site" for layers and attentions as a whole.
        by: the baseline: "mean" for the mean over the neutral texts of `pairs`, "zero", or "resample" for what the
            intact model computes at the same position in another pair.
        over: what D compares, as in `patch`: "first" for the tokens at the first difference, "ending" for everything
            after the shared prefix, which varies less between pairs and takes longer.
        shares: shares of the units, larger than 0 and at most 1, at least two.
        controls: number of random controls of each score.
        only_preferred: read only the pairs with D > 0 in the intact model, for which it prefers the toxic text. f then
            describes these pairs only.
        draws: number of bootstrap draws. They need no further pass over the model.
        seed: seed for the draws, the controls, and the other pairs of by="resample".
        skip_first: leave the first position unchanged and out of the mean. It can be an attention sink.
        max_length: number of tokens read from each text.

    Raises:
        ToxlocError: m(M) - m(∅), by which f divides, is not distinguishable from 0 or is negative; an unknown score,
            level, baseline or span; shares that are empty or not shares; own scores that do not fit the localization; a
            localization of a model of another shape; routed experts at `level="unit"` or with by="resample"; or a set
            that is not paired or has fewer than two usable pairs.

    Source: MIB (Mueller et al. 2025, arXiv:2504.13151), with units in place of the edges of a circuit.

    Example:
        >>> from toxloc import load_contrast, load_model, localize
        >>> fit, held_out = load_contrast().split(0.5)
        >>> lm = load_model()
        >>> loc = localize(lm, fit, ("attribution",), parts=("mlp", "attention"), draws=0)     # doctest: +SKIP
        >>> result = faithfulness(lm, held_out, loc, over="ending")                            # doctest: +SKIP
        >>> result.cpr["attribution"].above, result.cmd["attribution"].value                   # doctest: +SKIP
    """
    lm = LoadedModel.of(lm)
    check_kind(loc, Localization, "the localization")
    for name, value, known in (("level", level, Level), ("by", by, Baseline), ("over", over, Over)):
        if value not in get_args(known):
            raise ToxlocError(f"{name}={value!r}: choose one of {', '.join(get_args(known))}.")
    shares = _checked_shares(shares)
    controls, seed = whole_number(controls, "controls"), whole_number(seed, "seed")
    draws = whole_number(draws, "draws", at_least=1)
    sizes = unit_sizes(lm, loc)
    parts = _replaceable(lm, list(sizes), level, by)
    lengths = BySite({site: len(size) if level == "unit" else 1 for site, size in sizes.items()})
    values = _values(loc, scores, level, lengths)

    sets = UnitSets(lengths)
    counts = tuple(math.floor(share * sets.n_units + 1e-9) for share in shares)
    rng = np.random.default_rng([seed, 4])
    blocks = list(sizes.values()) if level == "unit" else _sizes_by_part(sizes)
    exchanges = [np.arange(sets.n_units), *(matched_order(blocks, rng) for _ in range(controls))]
    columns = {
        (name, order): np.array(
            [
                sets.columns((abs(own) if order == "kept_absolute" else own)[exchange], counts, order == "removed")
                for exchange in exchanges
            ]
        )
        for name, own in values.items()
        for order in MEASURES
    }

    usable = first_differences(lm, pairs, max_length).usable
    reader = PairReader(lm, usable, by, over, seed=seed, skip_first=skip_first)
    intact = read_sets(reader, parts, sets, [INTACT], np.arange(len(usable)))[:, 0]
    if only_preferred:
        usable, intact = _preferred(usable, intact)
        reader = PairReader(lm, usable, by, over, seed=seed, skip_first=skip_first)
    if by == "mean":
        neutral = encode_rows(lm, pairs.neutral, max_length)
        read_means(lm, [part.activation for part in parts], neutral, skip_first=skip_first)
    group = groups_of_pairs(len(usable))
    per_group = np.bincount(group).astype(np.float64)
    resampled = Weights.bootstrap(len(per_group), len(per_group), True, draws, seed)
    sums = np.c_[np.bincount(group, intact), read_sets(reader, parts, sets, [EMPTY], group)]
    gap_ci = _checked_gap(mean_over_pairs(sums, per_group, resampled), sums.sum(0) / len(usable))
    sums = np.c_[sums, read_sets(reader, parts, sets, range(2, len(sets)), group)]
    means = mean_over_pairs(sums, per_group, Weights.observed(len(per_group), len(per_group)))[0]
    drawn = _relative(mean_over_pairs(sums, per_group, resampled))
    return Faithfulness(
        tuple(
            _curve(name, order, means[chosen], _relative(means)[chosen], drawn[:, chosen], np.array(shares))
            for (name, order), chosen in columns.items()
        ),
        shares,
        counts,
        sets.n_units,
        level,
        by,
        over,
        len(usable),
        len(pairs.toxic) - len(usable),
        float(means[INTACT]),
        float(means[EMPTY]),
        gap_ci,
        len(sets),
    )


def _relative(means: Float64[np.ndarray, "*draws sets"]) -> Float64[np.ndarray, "*draws sets"]:
    """Return f of every set from the means of D."""
    empty, intact = means[..., [EMPTY]], means[..., [INTACT]]
    with np.errstate(all="ignore"):  # a draw can have no gap; intervals leave it out
        f: np.ndarray = (means - empty) / (intact - empty)
    return f


def _curve(
    score: str,
    order: Order,
    difference: Float64[np.ndarray, "curves n_shares"],
    f: Float64[np.ndarray, "curves n_shares"],
    drawn: Float64[np.ndarray, "draws curves n_shares"],
    shares: Float64[np.ndarray, " n_shares"],
) -> FaithfulnessCurve:
    """Summarise the curve of a score, which comes first, and those of its controls."""
    ends = np.array([central_interval(values) for values in drawn[:, 0].T])
    areas, areas_drawn = (np.trapezoid(abs(1 - y) if order == "kept_absolute" else y, shares) for y in (f, drawn))
    above, above_drawn = (x[..., 0] - (x[..., 1:].mean(-1) if len(f) > 1 else np.nan) for x in (areas, areas_drawn))
    area = Area(
        float(areas[0]),
        central_interval(areas_drawn[:, 0]),
        tuple(map(float, areas[1:])),
        float(above),
        central_interval(above_drawn),
    )
    return FaithfulnessCurve(score, order, difference[0], f[0], ends[:, 0], ends[:, 1], f[1:], area)


def _checked_gap(drawn: Float64[np.ndarray, "draws 2"], means: Float64[np.ndarray, " 2"]) -> Interval:
    """Return the interval of m(M) - m(∅), which has to be above 0."""
    low, high = central_interval(drawn[:, INTACT] - drawn[:, EMPTY])
    if low <= 0:
        raise ToxlocError(
            f"The mean of D is {means[INTACT]:.3g} in the intact model and {means[EMPTY]:.3g} with every unit "
            f"replaced; the 95% interval of the difference, [{low:.3g}, {high:.3g}], is not above 0, and faithfulness "
            "divides by this difference. Give more pairs, over='ending', another by, or only_preferred=True."
        )
    return low, high


def _preferred(
    usable: tuple[FirstDifference, ...], intact: Float64[np.ndarray, " n_pairs"]
) -> tuple[tuple[FirstDifference, ...], Float64[np.ndarray, " n_preferred"]]:
    """Return the pairs with D > 0 in the intact model, and their D."""
    preferred = tuple(pair for pair, difference in zip(usable, intact, strict=True) if difference > 0)
    if len(preferred) < FEWEST_PAIRS:
        raise ToxlocError(
            f"The model prefers the toxic text in {len(preferred)} of {len(usable)} pairs, and {FEWEST_PAIRS} are "
            "needed; give more pairs, or leave only_preferred out."
        )
    return preferred, intact[intact > 0]


def _checked_shares(shares: Sequence[float]) -> tuple[float, ...]:
    """Return shares in rising order, each once."""
    given = as_list(shares, "the shares")
    wrong = [share for share in given if isinstance(share, bool) or not isinstance(share, Real) or not 0 < share <= 1]
    if wrong or len(set(given)) < FEWEST_SHARES:
        raise ToxlocError(
            f"shares={short_repr(shares)}: give at least {FEWEST_SHARES} different numbers above 0 and at most 1, such "
            "as (0.01, 0.1, 1)."
        )
    return tuple(sorted({float(share) for share in given}))


def _replaceable(lm: LoadedModel, sites: list[Site], level: str, by: By) -> list[ReplacedPart]:
    """Return the parts to replace, one per site."""
    if level == "site":
        return replaced_parts(lm, sites, by)
    for site in sites:
        if lm.at(site).bank is not None:
            raise ToxlocError(
                f"Single neurons of {site.title}, an expert that a router chooses, cannot be replaced; give "
                "level='site'."
            )
    return [ReplacedUnits(lm, site) for site in sites]


def _values(
    loc: Localization, scores: Sequence[str] | OwnScores | None, level: str, lengths: BySite[int]
) -> dict[str, Float64[np.ndarray, " n_units"]]:
    """Return the value of every unit by name of the score; the units of the first site come first."""
    by_site: dict[str, BySite[Any]]
    if isinstance(scores, Mapping):
        by_site = {name: BySite({Site.of(site): x for site, x in own.items()}) for name, own in scores.items()}
    else:
        names = loc.scores if scores is None else as_list(scores, "the scores")
        by_site = {name: loc.unit_scores(name) if level == "unit" else loc.site_scores(name) for name in names}
    if not by_site:
        raise ToxlocError(f"There is no score; choose from {', '.join(loc.scores)}.")
    values = {}
    for name, own in by_site.items():
        rows = [np.atleast_1d(np.asarray(own.get(site, ()), dtype=np.float64)) for site in lengths]
        fits = [
            row.shape == (n,) and bool(np.isfinite(row).all()) for row, n in zip(rows, lengths.values(), strict=True)
        ]
        if not all(fits):
            site = list(lengths)[fits.index(False)]
            raise ToxlocError(
                f"The score {name!r} does not give {lengths[site]} finite number(s) for {site.title}; give one for "
                f"every {level} of the localization."
            )
        values[name] = np.concatenate(rows)
    return values


def _sizes_by_part(sizes: BySite[Float64[np.ndarray, " _n"]]) -> list[Float64[np.ndarray, " _n_sites"]]:
    """Return the mean square activation of the sites of each part, of which only the order counts."""
    return [
        np.array([(size**2).mean() for size in group.values()])
        for group in (
            {site: size for site, size in sizes.items() if site.part == part}
            for part in dict.fromkeys(site.part for site in sizes)
        )
    ]
