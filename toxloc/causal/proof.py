"""Remove parts one by one, and correlate the effects with each score."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64
from scipy.stats import rankdata

from ..localization.result import Localization
from ..support.intervals import CONFIDENCE, Interval
from ..support.progress import track
from .knockout import RESAMPLES, Knockout, KnockoutTest, Neuron, size_of


@dataclass(frozen=True)
class Correlation:
    """How well a score orders parts by what removing them does.

    Attributes:
        score: name of the score.
        parts: "layers" or "neurons".
        n: number of parts.
        spearman: rank correlation of score and effect.
        ci: its 95% bootstrap interval over parts.
    """

    score: str
    parts: str
    n: int
    spearman: float
    ci: Interval

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self) | {"ci": list(self.ci)}


@dataclass(frozen=True)
class CausalProof:
    """The effects of removing parts one by one, and how each score's order agrees with them.

    Attributes:
        layers: one knock-out per layer.
        neurons: one knock-out per neuron sampled.
        correlations: for layers and neurons, one for each score.
    """

    layers: tuple[Knockout, ...]
    neurons: tuple[Knockout, ...]
    correlations: tuple[Correlation, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name; of single neurons the place and the effect."""
        return {"layers": [k.to_dict() for k in self.layers],
                "neurons": [[*k.neurons[0], k.effect] for k in self.neurons],
                "correlations": [c.to_dict() for c in self.correlations]}


def causal_proof(test: KnockoutTest, loc: Localization, *, n_neurons: int = 64, scale: float = 0.0,
                 seed: int = 0) -> CausalProof:
    """Remove every layer, and a sample of single neurons, and correlate each score with the effects.

    Half of the neurons come in equal parts from the tops of the scores (each score's highest `n_neurons`), half from
    anywhere.

    Args:
        test: texts and figures of the whole model; best texts that `loc` has not seen.
        loc: a localization of the same model.
        n_neurons: neurons to sample; 0 for layers alone.
        scale: what removed parts are multiplied by.
        seed: of the sample and the bootstrap.

    Raises:
        ToxlocError: another model's localization.
    """
    size_of(test.lm, loc)
    layers = [test.remove([layer], scale) for layer in track(range(test.lm.n_layers), "layer knock-outs")]
    sample = _sample_neurons(loc, n_neurons, np.random.default_rng(seed))
    neurons = [test.remove([neuron], scale) for neuron in track(sample, "neuron knock-outs")]
    correlations = []
    for name in loc.scores:
        correlations.append(_correlation(name, "layers", loc.layer_scores(name), layers, seed))
        if sample:
            values = loc.neuron_scores(name)[tuple(np.array(sample).T)]
            correlations.append(_correlation(name, "neurons", values, neurons, seed))
    return CausalProof(tuple(layers), tuple(neurons), tuple(correlations))


def _sample_neurons(loc: Localization, count: int, rng: np.random.Generator) -> list[Neuron]:
    n_layers, d_mlp = next(iter(loc.neurons.values())).shape
    count = min(count, n_layers * d_mlp)
    chosen: dict[Neuron, None] = {}
    for name in loc.scores:
        top = loc.top_neurons(name, max(1, count))
        for i in rng.permutation(len(top))[: count // 2 // len(loc.scores)]:
            chosen[top[i]] = None
    for i in rng.permutation(n_layers * d_mlp):
        if len(chosen) >= count:
            break
        chosen[divmod(int(i), d_mlp)] = None
    return list(chosen)


def _correlation(score: str, parts: str, values: Float64[np.ndarray, " n"], knockouts: Sequence[Knockout],
                 seed: int) -> Correlation:
    effects = np.array([k.effect for k in knockouts])
    draws = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    resampled = _spearman(values[draws], effects[draws])
    low, high = np.nanquantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Correlation(score, parts, len(values), float(_spearman(values[None], effects[None])[0]),
                       (float(low), float(high)))


def _spearman(x: Float64[np.ndarray, "draws n"], y: Float64[np.ndarray, "draws n"]) -> Float64[np.ndarray, " draws"]:
    """Rank correlation of each row of x with the same row of y; 0 where a row is constant."""
    ranks = [rankdata(rows, axis=1) for rows in (x, y)]
    a, b = (r - r.mean(1, keepdims=True) for r in ranks)
    norms = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    correlation: np.ndarray = np.divide((a * b).sum(1), norms, out=np.zeros(len(x)), where=norms > 0)
    return correlation
