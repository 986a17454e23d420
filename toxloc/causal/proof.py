"""Causal proof: remove parts one by one, and correlate the effects with each score."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64
from scipy.stats import rankdata

from ..localization.result import Localization
from ..localization.score_table import SCORES
from ..models.sites import Unit
from ..support.intervals import Interval, bootstrap
from ..support.progress import track
from .knockout import Knockout, KnockoutTest, unit_sizes


@dataclass(frozen=True)
class Correlation:
    """Rank correlation between a score of parts and the effect of removing them.

    Attributes:
        score: name of the score.
        parts: "layers" or, if the layers of several parts were removed, "sites"; "neurons" for single units.
        n: number of parts.
        spearman: Spearman rank correlation of score and effect.
        ci: 95% bootstrap interval of `spearman` over parts.
    """

    score: str
    parts: str
    n: int
    spearman: float
    ci: Interval

    @property
    def score_title(self) -> str:
        """Title of the score in figures."""
        return SCORES[self.score].title if self.score in SCORES else self.score

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self) | {"ci": list(self.ci)}


@dataclass(frozen=True)
class CausalProof:
    """The effects of removing parts one by one, and their rank correlation with each score.

    Attributes:
        layers: knock-outs, one per layer of every part that was removed.
        neurons: knock-outs, one per sampled neuron.
        correlations: correlations of each score with the effects, for layers and for neurons.
    """

    layers: tuple[Knockout, ...]
    neurons: tuple[Knockout, ...]
    correlations: tuple[Correlation, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name. A single neuron is given as [layer, neuron, effect]."""
        return {
            "layers": [k.to_dict() for k in self.layers],
            "neurons": [[*k.neurons[0], k.effect] for k in self.neurons],
            "correlations": [c.to_dict() for c in self.correlations],
        }


def causal_proof(
    test: KnockoutTest,
    loc: Localization,
    *,
    n_neurons: int = 64,
    scale: float = 0.0,
    seed: int = 0,
    part: str | None = None,
) -> CausalProof:
    """Remove every site, and a sample of single units, and correlate each score with the effects.

    Half of the units are drawn in equal shares from the highest `n_neurons` units of each score, and the other half
    from all units.

    Args:
        test: the knock-out test, with its texts (preferably held out from `loc`) and the measurements of the intact
            model.
        loc: a localization of the same model.
        n_neurons: number of units to sample; 0 for sites only.
        scale: factor of the removed parts.
        seed: seed for the sample and the bootstrap.
        part: "mlp" for layers and neurons, "attention" for attentions and heads; by default the sites of all parts of
            the localization, and the units of its first part.

    Raises:
        ToxlocError: the localization is of a model of another shape.
    """
    sites = list(unit_sizes(test.lm, loc, part))
    kind = "layers" if part or len(loc.parts) == 1 else "sites"
    part = part or loc.parts[0]
    layers = [test.remove([site], scale) for site in track(sites, "layer knock-outs")]
    sample = _sample_units(loc, part, n_neurons, np.random.default_rng(seed))
    units = [test.remove([unit], scale) for unit in track(sample, "neuron knock-outs")]
    rows = {site: row for row, site in enumerate(loc.sites(part))}
    places = (np.array([rows[site] for site, _ in sample], int), np.array([unit for _, unit in sample], int))
    correlations = []
    for name in loc.scores:
        scores = loc.site_scores(name)
        correlations.append(_correlation(name, kind, np.array([scores[site] for site in sites]), layers, seed))
        if sample:
            correlations.append(_correlation(name, "neurons", loc.neuron_scores(name, part)[places], units, seed))
    return CausalProof(tuple(layers), tuple(units), tuple(correlations))


def _sample_units(loc: Localization, part: str, count: int, rng: np.random.Generator) -> list[Unit]:
    sites, n_units = loc.sites(part), loc.neuron_scores(loc.scores[0], part).shape[1]
    count = min(count, len(sites) * n_units)
    chosen: dict[Unit, None] = {}
    for name in loc.scores:
        top = loc.top_units(name, max(1, count), part)
        for i in rng.permutation(len(top))[: count // 2 // len(loc.scores)]:
            chosen[top[i]] = None
    for i in rng.permutation(len(sites) * n_units):
        if len(chosen) >= count:
            break
        layer, unit = divmod(int(i), n_units)
        chosen[sites[layer], unit] = None
    return list(chosen)


def _correlation(
    score: str, parts: str, values: Float64[np.ndarray, " n"], knockouts: Sequence[Knockout], seed: int
) -> Correlation:
    effects = np.array([k.effect for k in knockouts])
    ci = bootstrap(lambda i: _spearman(values[i], effects[i]), len(values), seed)
    return Correlation(score, parts, len(values), float(_spearman(values[None], effects[None])[0]), ci)


def _spearman(x: Float64[np.ndarray, "draws n"], y: Float64[np.ndarray, "draws n"]) -> Float64[np.ndarray, " draws"]:
    """Rank correlation of each row of x with the same row of y; 0 where a row is constant."""
    ranks = [rankdata(rows, axis=1) for rows in (x, y)]
    a, b = (r - r.mean(1, keepdims=True) for r in ranks)
    norms = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    correlation: np.ndarray = np.divide((a * b).sum(1), norms, out=np.zeros(len(x)), where=norms > 0)
    return correlation
