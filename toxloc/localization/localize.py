"""Which layers and neurons carry toxicity: scores with intervals and nulls, from one pass per text set."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64

from ..errors import ToxlocError
from ..models.loaded import AnyModel, LoadedModel
from ..texts.contrast import ContrastSet
from .result import Localization
from .scores import SCORES
from .statistics import ContrastStatistics, collect_contrast
from .uncertainty import DRAWS, Uncertainty, Weights

if TYPE_CHECKING:
    pass
DEFAULT_SCORES = ("activation", "gradient_norm", "attribution")


def localize(lm: AnyModel, pairs: ContrastSet, scores: Sequence[str] = DEFAULT_SCORES, *, draws: int = DRAWS,
             seed: int = 0, statistics: ContrastStatistics | None = None, skip_first: bool = True,
             max_length: int = 128) -> Localization:
    """Score every layer and neuron by the contrast between toxic and neutral texts.

    Args:
        lm: the model; a HookedTransformer of transformer-lens 3.9 will do.
        pairs: toxic and neutral texts. If they are paired, pairs are resampled and shuffled as pairs.
        scores: any of "activation", "gradient_norm", "gradient_calibrated", "attribution", "combined", "auroc",
            "editability" (formulas: the functions of those names in `toxloc.localization.scores`).
        draws: bootstrap draws and shufflings for intervals and p; 0 for none. The model is not run again for them.
        seed: of the draws.
        statistics: what `collect_contrast` found before, to spare the passes.
        skip_first: leave the first position of each text out (it can be an attention sink).
        max_length: tokens read of each text.

    Raises:
        ToxlocError: an unknown score, an empty set, or statistics that lack what a score needs.

    Example:
        >>> from toxloc import load_contrast, load_model
        >>> loc = localize(load_model(), load_contrast())
        >>> loc.layer_scores("attribution").shape, loc.neuron_scores("attribution").shape
        ((8,), (8, 1024))
        >>> loc.uncertainty["attribution"].p_adjusted.min() < 0.01
        True
    """
    lm = LoadedModel.of(lm)
    unknown = [name for name in scores if name not in SCORES]
    if unknown or not scores:
        raise ToxlocError(f"Unknown score {', '.join(unknown) or '(none given)'}; choose from {', '.join(SCORES)}.")
    if draws < 0:
        raise ToxlocError(f"draws={draws}: give 0 for no intervals, or a number such as {DRAWS}.")
    if statistics is None:
        needs = frozenset().union(*(SCORES[name].needs for name in scores))
        wanted: dict[str, Any] = {need: need in needs for need in ("gradients", "curvature", "reliance", "peaks")}
        statistics = collect_contrast(lm, pairs, skip_first=skip_first, max_length=max_length, **wanted)
    weights = _weights(statistics, draws, seed) if draws else []
    found = {name: SCORES[name].formula(lm, statistics, weights) for name in scores}
    about = {"model": lm.name, "fingerprint": lm.fingerprint, "contrast": pairs.name,
             "n_toxic": len(pairs.toxic), "n_neutral": len(pairs.neutral)}
    sure = {}
    for name, one in found.items():
        if one.draws:
            resampled, null = one.draws
            sure[name] = Uncertainty.of(one.layers, resampled, null, SCORES[name].signed, SCORES[name].bounds)
    return Localization({name: one.layers for name, one in found.items()},
                        {name: one.neurons for name, one in found.items()}, about, _activation_size(statistics), sure)


def _weights(s: ContrastStatistics, draws: int, seed: int) -> list[Weights]:
    assert s.toxic.contributions is not None
    assert s.neutral.contributions is not None
    sizes = len(s.toxic.contributions.tokens), len(s.neutral.contributions.tokens)
    return [Weights.bootstrap(*sizes, s.paired, draws, seed), Weights.shuffled(*sizes, s.paired, draws, seed)]


def _activation_size(s: ContrastStatistics) -> Float64[np.ndarray, "n_layers d_mlp"]:
    """Root mean square over the tokens of both sides."""
    sizes = []
    for t, n in zip(s.toxic.neurons, s.neutral.neurons, strict=True):
        squares = t.squares + t.count * t.mean**2 + n.squares + n.count * n.mean**2
        sizes.append((squares / (t.count + n.count)).sqrt().numpy())
    return np.stack(sizes)
