"""Which layers and neurons carry toxicity: scores with intervals and nulls, from one pass per text set."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from ..errors import ToxlocError
from ..models.loaded import AnyModel, LoadedModel
from ..models.sites import PARTS, Part, Site
from ..texts.contrast import ContrastSet
from .result import Localization, PartScores
from .score_names import ScoreName
from .scores import SCORES, Scored, both_contributions, check_scores, needs_of
from .statistics import ContrastStatistics, collect_contrast
from .uncertainty import DRAWS, Uncertainty, Weights

DEFAULT_SCORES: tuple[ScoreName, ...] = ("activation", "gradient_norm", "attribution")


def localize(
    lm: AnyModel,
    pairs: ContrastSet,
    scores: Sequence[ScoreName] = DEFAULT_SCORES,
    *,
    parts: Sequence[Part] = ("mlp",),
    draws: int = DRAWS,
    seed: int = 0,
    statistics: ContrastStatistics | None = None,
    skip_first: bool = True,
    max_length: int = 128,
) -> Localization:
    """Score every site and unit of a model by the contrast between toxic and neutral texts.

    Args:
        lm: the model; a HookedTransformer of transformer-lens 3.9 will do.
        pairs: toxic and neutral texts. If they are paired, pairs are resampled and shuffled as pairs.
        scores: any of "activation", "gradient_norm", "gradient_calibrated", "attribution", "combined", "auroc",
            "editability" (formulas: the functions of those names in `toxloc.localization.scores`).
        parts: "mlp" for layers and neurons, "attention" for attention outputs and heads, or both. The adjusted p counts
            all sites of all parts.
        draws: bootstrap draws and permutations for intervals and p; 0 for none. The model is not run again for them.
        seed: seed for the draws.
        statistics: the result of `collect_contrast` on the sites of these parts, to spare the passes.
        skip_first: leave the first position of each text out (it can be an attention sink).
        max_length: tokens read of each text.

    Raises:
        ToxlocError: an unknown score or part, an empty set, or statistics that lack what a score needs.

    Example:
        >>> from toxloc import load_contrast, load_model
        >>> loc = localize(load_model(), load_contrast())
        >>> loc.layer_scores("attribution").shape, loc.neuron_scores("attribution").shape
        ((8,), (8, 1024))
        >>> loc.uncertainty["attribution"].p_adjusted.min() < 0.01
        True
    """
    lm = LoadedModel.of(lm)
    check_scores(scores)
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        raise ToxlocError(f"Unknown part {', '.join(unknown) or '(none given)'}; choose from {', '.join(PARTS)}.")
    if draws < 0:
        raise ToxlocError(f"draws={draws}: give 0 for no intervals, or a number such as {DRAWS}.")
    if statistics is None:
        needs = needs_of(scores)
        statistics = collect_contrast(
            lm,
            pairs,
            sites=lm.sites(*parts),
            skip_first=skip_first,
            max_length=max_length,
            gradients="gradients" in needs,
            curvature="curvature" in needs,
            reliance="reliance" in needs,
            peaks="peaks" in needs,
        )
    weights = _weights(statistics, draws, seed) if draws else []
    scored: dict[str, Scored] = {name: SCORES[name].formula(lm, statistics, weights) for name in scores}
    sure: dict[str, Uncertainty] = {}
    for name, one in scored.items():
        if one.draws:
            resampled, null = one.draws
            sure[name] = Uncertainty.of(one.sites, resampled, null, SCORES[name].signed, SCORES[name].bounds)
    sizes = [_unit_sizes(lm, statistics, site) for site in statistics.sites]
    own = dict.fromkeys(site.part for site in sorted(statistics.sites, key=lambda site: PARTS.index(site.part)))
    about = {
        "model": lm.name,
        "fingerprint": lm.fingerprint,
        "contrast": pairs.name,
        "n_toxic": len(pairs.toxic),
        "n_neutral": len(pairs.neutral),
    }
    return Localization({part: _part_scores(part, statistics.sites, scored, sizes, sure) for part in own}, about)


def _part_scores(
    part: str,
    sites: Sequence[Site],
    scored: dict[str, Scored],
    sizes: Sequence[np.ndarray],
    sure: dict[str, Uncertainty],
) -> PartScores:
    """Take the sites of one part out of the scores of all."""
    places = [i for i, site in enumerate(sites) if site.part == part]
    return PartScores(
        tuple(sites[i] for i in places),
        {name: one.sites[places] for name, one in scored.items()},
        {name: np.stack([one.units[i] for i in places]) for name, one in scored.items()},
        np.stack([sizes[i] for i in places]),
        {name: known.at(places) for name, known in sure.items()},
    )


def _weights(s: ContrastStatistics, draws: int, seed: int) -> list[Weights]:
    toxic, neutral = both_contributions(s)
    sizes = len(toxic.tokens), len(neutral.tokens)
    return [Weights.bootstrap(*sizes, s.paired, draws, seed), Weights.shuffled(*sizes, s.paired, draws, seed)]


def _unit_sizes(lm: LoadedModel, s: ContrastStatistics, site: Site) -> Float64[np.ndarray, " n_units"]:
    """Root mean square of every unit's activation over the tokens of both sides; of a head's, the norm of its z."""
    t, n = s.toxic.keys[site], s.neutral.keys[site]
    squares = t.squares + t.count * t.mean**2 + n.squares + n.count * n.mean**2
    sizes: np.ndarray = (lm.at(site).per_unit(squares) / (t.count + n.count)).sqrt().numpy()
    return sizes
