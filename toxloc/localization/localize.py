"""Localization: scores of layers and neurons with intervals and null distributions, from one pass per text set."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float64

from ..errors import ToxlocError
from ..models.loaded import AnyModel, LoadedModel
from ..models.sites import PARTS, Part, Site
from ..support.arguments import as_list, check_kind
from ..texts.contrast import ContrastSet
from .result import Localization, PartScores, stacked
from .score_names import ScoreName
from .score_table import SCORES, check_scores, needs_of
from .scored import Scored, both_contributions, joined
from .statistics import ContrastStatistics, collect_contrast, groups_that_fit, statistics_memory
from .uncertainty import DRAWS, Uncertainty, Weights

DEFAULT_SCORES: tuple[ScoreName, ...] = ("activation", "gradient_norm", "attribution")


def localize(
    lm: AnyModel,
    pairs: ContrastSet,
    scores: Sequence[ScoreName] = DEFAULT_SCORES,
    *,
    parts: Sequence[Part] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    statistics: ContrastStatistics | Iterable[ContrastStatistics] | None = None,
    skip_first: bool = True,
    max_length: int = 128,
    memory: int | None = None,
) -> Localization:
    """Score every site and unit of a model by the contrast between toxic and neutral texts.

    Args:
        lm: the model; a HookedTransformer of transformer-lens 3.9 is accepted too.
        pairs: toxic and neutral texts. If they are paired, pairs are resampled and shuffled as pairs.
        scores: names of scores: any of "activation", "gradient_norm", "gradient_calibrated", "attribution",
            "counterfactual" (of a paired set), "combined", "auroc", "editability", and of experts "routing" (formulas:
            the functions of the same names in `toxloc.localization.scores`).
        parts: "mlp" for layers and neurons, "attention" for attention outputs and heads, "mixer" for linear
            recurrences, state spaces and convolutions, "expert" and "shared_expert" for mixtures of experts, or
            several; by default the parts of `statistics`, or else MLPs and experts. The adjusted p-value is for all
            sites of all parts.
        draws: number of bootstrap draws, and of permutations, for intervals and p-values; 0 for none. They need no
            further pass over the model.
        seed: seed for the draws.
        statistics: result of `collect_contrast`, to save the passes over the model; or the statistics of one group of
            sites after another (`Evidence.groups`).
        skip_first: leave out the first position of each text, which can be an attention sink. The score
            "counterfactual" leaves it out of the mean only, and not of the sum over the prefix.
        max_length: number of tokens read from each text.
        memory: bytes that the matrices of all sites may take (G and, for some scores, C and S); by default 4 GiB, or 1
            GiB if the model is offloaded. If they need more, one group of sites is scored after another, with passes
            over the model for each group and the same result.

    Raises:
        ToxlocError: an unknown score or part, negative `draws`, an empty set, statistics of other parts, missing
            statistics that a score needs, or a set for "counterfactual" that is not paired or has fewer than two pairs
            that share a prefix and then differ.

    Example:
        >>> from toxloc import load_contrast, load_model
        >>> loc = localize(load_model(), load_contrast())
        >>> loc.layer_scores("attribution").shape, loc.neuron_scores("attribution").shape
        ((8,), (8, 1024))
        >>> loc.uncertainty["attribution"].p_adjusted.min() < 0.01
        True
    """
    lm = LoadedModel.of(lm)
    check_kind(pairs, ContrastSet, "the contrast set")
    names = check_scores(scores)
    if parts is None:
        expected = statistics.sites if isinstance(statistics, ContrastStatistics) else lm.sites_of_choice("mlp")
        parts = tuple(part for part in PARTS if any(site.part == part for site in expected))
    parts = as_list(parts, "the parts")
    unknown = [str(part) for part in parts if part not in PARTS]
    if unknown or not parts:
        raise ToxlocError(f"Unknown part {', '.join(unknown) or '(none given)'}; choose from {', '.join(PARTS)}.")
    absent = [part for part in parts if part not in lm.parts]
    if absent:
        raise ToxlocError(f"{lm.name} has no {' or '.join(absent)}; its parts are {', '.join(lm.parts)}.")
    for name in names:
        only = SCORES[name].only
        if only is not None and parts != [only]:
            raise ToxlocError(f"{name} is a score of the part {only!r} only; give parts=({only!r},) with it.")
    if draws < 0:
        raise ToxlocError(f"draws={draws}: give 0 for no intervals, or a number such as {DRAWS}.")
    if statistics is None:
        needs = needs_of(names)
        gathered: Iterator[ContrastStatistics] = (
            collect_contrast(
                lm,
                pairs,
                sites=group,
                skip_first=skip_first,
                max_length=max_length,
                gradients="gradients" in needs,
                curvature="curvature" in needs,
                reliance="reliance" in needs,
                peaks="peaks" in needs,
                differences="differences" in needs,
            )
            for group in groups_that_fit(lm, lm.sites(*parts), statistics_memory(lm, memory), needs)
        )
    else:
        gathered = iter([statistics] if isinstance(statistics, ContrastStatistics) else statistics)
    sites: list[Site] = []
    sizes: list[np.ndarray] = []
    n_compared: int | None = None
    groups: list[dict[str, Scored]] = []
    for s in gathered:
        weights = {of_pairs: _weights(s, draws, seed, of_pairs) for of_pairs in {SCORES[name].paired for name in names}}
        groups.append({name: SCORES[name].formula(lm, s, weights[SCORES[name].paired]) for name in names})
        sites += s.sites
        sizes += [_unit_sizes(lm, s, site) for site in s.sites]
        if s.differences is not None:
            n_compared = s.differences.n_pairs
        del s  # before the next group is gathered
    if set(parts) != (collected := {site.part for site in sites}):
        raise ToxlocError(
            f"parts={tuple(parts)}, but the statistics are those of {' and '.join(sorted(collected))}; leave parts= "
            "out, or collect the statistics of these parts."
        )
    scored: dict[str, Scored] = {name: joined(name, [group[name] for group in groups]) for name in names}
    uncertainty: dict[str, Uncertainty] = {}
    for name, result in scored.items():
        if result.draws:
            resampled, null = result.draws
            uncertainty[name] = Uncertainty.of(result.sites, resampled, null, SCORES[name].signed, SCORES[name].bounds)
    counts = Counter(site.part for site in sites)
    main = "expert" if counts["expert"] > counts["mlp"] else "mlp"  # a mixture can have an MLP in its first layer only
    localized = sorted(counts, key=lambda part: (part != main, PARTS.index(part)))  # type: ignore[arg-type]
    about = {
        "model": lm.name,
        "fingerprint": lm.fingerprint,
        "contrast": pairs.name,
        "n_toxic": len(pairs.toxic),
        "n_neutral": len(pairs.neutral),
        **({} if n_compared is None else {"n_pairs_compared": n_compared}),
    }
    return Localization({part: _part_scores(part, sites, scored, sizes, uncertainty) for part in localized}, about)


def _part_scores(
    part: str,
    sites: Sequence[Site],
    scored: dict[str, Scored],
    sizes: Sequence[np.ndarray],
    uncertainty: dict[str, Uncertainty],
) -> PartScores:
    """Select the scores of the sites of one part."""
    places = [i for i, site in enumerate(sites) if site.part == part]
    return PartScores(
        tuple(sites[i] for i in places),
        {name: result.sites[places] for name, result in scored.items()},
        {name: stacked([result.units[i] for i in places]) for name, result in scored.items()},
        stacked([sizes[i] for i in places]),
        {name: known.at(places) for name, known in uncertainty.items()},
    )


def _weights(s: ContrastStatistics, draws: int, seed: int, of_pairs: bool) -> list[Weights]:
    """Return the draws of the groups of texts or, for a score of pairs, of the groups of pairs that it compares."""
    if not draws:
        return []
    if of_pairs:
        if s.differences is None:
            return []  # the formula says what is missing
        sizes = len(s.differences.counts), len(s.differences.counts)
    else:
        toxic, neutral = both_contributions(s)
        sizes = len(toxic.tokens), len(neutral.tokens)
    return [Weights.bootstrap(*sizes, s.paired, draws, seed), Weights.shuffled(*sizes, s.paired, draws, seed)]


def _unit_sizes(lm: LoadedModel, s: ContrastStatistics, site: Site) -> Float64[np.ndarray, " n_units"]:
    """Root mean square of every unit's activation over the tokens of both sides; a head's activation is |z|."""
    t, n = s.toxic.keys[site], s.neutral.keys[site]
    squares = t.squares + t.count * t.mean**2 + n.squares + n.count * n.mean**2
    sizes: np.ndarray = (lm.at(site).per_unit(squares) / max(1, t.count + n.count)).sqrt().numpy()
    return sizes
