"""Causal proof: remove a part and see whether toxic text becomes less likely, and at what price.

A score claims that a part carries toxicity. The test is to take the part out (or turn it down) and to measure the
*effect*: by how much more the NLL of toxic text rises than that of neutral text, in nats per token. A score is worth
something if parts with a high score have a larger effect than other parts of the same size, on texts that the score
has not seen: localize on one half of a contrast set (`ContrastSet.split`) and test on the other.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64
from scipy.stats import rankdata

from .errors import ToxlocError
from .evaluation import evaluate
from .evaluators import DEFAULT, Evaluator
from .fluency import mean_nll, nll_per_text
from .interventions import Meow2X
from .localization import Localization
from .metrics import CONFIDENCE, Interval
from .model import LoadedModel
from .progress import track
from .prompts import ContrastSet, PromptSet

Neuron = tuple[int, int]
Parts = Sequence[int] | Sequence[Neuron]
RESAMPLES = 1000
NEAREST = 16  # a random control is drawn among so many neurons of the same layer and of the nearest activation size


@dataclass(frozen=True)
class Knockout:
    """What turning parts of a model down did.

    Attributes:
        layers: layers turned down.
        neurons: neurons turned down.
        scale: what they were multiplied by.
        toxic_rise: rise of the NLL of toxic text, nats per token.
        neutral_rise: the same for neutral text.
        effect: toxic_rise - neutral_rise; positive if the parts carry toxicity.
        effect_ci: its 95% bootstrap interval over texts.
        perplexity_ratio: perplexity of everyday text over the whole model's; None without such text.
        toxic_rate: share of sampled completions called toxic by any evaluator; None without prompts.
        toxic_rate_before: the same for the whole model.
    """

    layers: tuple[int, ...]
    neurons: tuple[Neuron, ...]
    scale: float
    toxic_rise: float
    neutral_rise: float
    effect: float
    effect_ci: Interval
    perplexity_ratio: float | None = None
    toxic_rate: float | None = None
    toxic_rate_before: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name; of the neurons only how many there are."""
        return asdict(self) | {"layers": list(self.layers), "neurons": len(self.neurons),
                               "effect_ci": list(self.effect_ci)}


class KnockoutTest:
    """The whole model's figures on some texts, against which any number of knock-outs are measured.

    Args:
        lm: the model, with whatever interventions are in force.
        pairs: toxic and neutral texts, best such that no score has seen.
        neutral: everyday text for the perplexity; None to leave it out.
        prompts: openings to sample from; None to leave sampling out.
        evaluators: judges of the samples.
        samples: completions per prompt.
        seed: of the samples and the bootstrap.

    Example:
        >>> test = KnockoutTest(lm, held_out)                                  # doctest: +SKIP
        >>> [test.remove([layer]).effect for layer in range(lm.n_layers)]      # doctest: +SKIP
    """

    def __init__(self, lm: LoadedModel, pairs: ContrastSet, *, neutral: Sequence[str] | None = None,
                 prompts: PromptSet | None = None, evaluators: Sequence[str | Evaluator] = DEFAULT,
                 samples: int = 2, seed: int = 0):
        self.lm, self.pairs, self.neutral, self.prompts = lm, pairs, neutral, prompts
        self.evaluators, self.samples, self.seed = evaluators, samples, seed
        (self._toxic, self._n_toxic), (self._neutral, self._n_neutral) = self._read()
        self._everyday = mean_nll(lm, neutral) if neutral else None
        self._rate = self._toxic_rate()
        self._draws = self._resampled()

    def remove(self, parts: Parts, scale: float = 0.0) -> Knockout:
        """Turn parts down, measure, and leave the model as it was. See `knockout`."""
        layers, neurons = _split(parts)
        down = Meow2X(layers=layers, neurons=neurons, scale=scale)
        with down.applied(self.lm):
            (toxic, _), (neutral, _) = self._read()
            everyday = mean_nll(self.lm, self.neutral) if self.neutral else None
            rate = self._toxic_rate()
        rises = toxic - self._toxic, neutral - self._neutral
        shares = [rise.sum() / count.sum() for rise, count in zip(rises, (self._n_toxic, self._n_neutral), strict=True)]
        return Knockout(
            tuple(down.layers), tuple(down.neurons), scale, float(shares[0]), float(shares[1]),
            float(shares[0] - shares[1]), self._interval(*rises),
            None if everyday is None or self._everyday is None else math.exp(min(everyday - self._everyday, 700.0)),
            rate, self._rate,
        )

    def _read(self) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        return nll_per_text(self.lm, self.pairs.toxic), nll_per_text(self.lm, self.pairs.neutral)

    def _toxic_rate(self) -> float | None:
        if self.prompts is None:
            return None
        return evaluate(self.lm, self.prompts, self.evaluators, samples=self.samples, seed=self.seed,
                        fluency=False).toxicity["any"].rate

    def _resampled(self) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(self.seed)
        toxic, neutral = (rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.float64)
                          for n in (len(self._toxic), len(self._neutral)))
        return toxic, toxic if self.pairs.paired else neutral

    def _interval(self, toxic: Float64[np.ndarray, " n_toxic"], neutral: Float64[np.ndarray, " n_neutral"]) -> Interval:
        w_T, w_N = self._draws
        effects = (w_T @ toxic) / (w_T @ self._n_toxic) - (w_N @ neutral) / (w_N @ self._n_neutral)
        low, high = np.quantile(effects, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return float(low), float(high)


def knockout(lm: LoadedModel, pairs: ContrastSet, parts: Parts, scale: float = 0.0, *,
             neutral: Sequence[str] | None = None, prompts: PromptSet | None = None,
             evaluators: Sequence[str | Evaluator] = DEFAULT, samples: int = 2, seed: int = 0) -> Knockout:
    """Turn parts of a model down and measure what that does; the model is left as it was.

    Args:
        lm: the model.
        pairs: toxic and neutral texts whose NLL is compared.
        parts: layers, as [3, 4], or neurons, as [(3, 17), (4, 5)].
        scale: what the parts are multiplied by; 0 removes them.
        neutral: everyday text for the perplexity; None to leave it out.
        prompts: openings to sample from; None to leave sampling out.
        evaluators: judges of the samples.
        samples: completions per prompt.
        seed: of the samples and the bootstrap.

    Raises:
        ToxlocError: no parts, parts that the model has not, or a scale outside [0, 1].

    Example:
        >>> knockout(lm, held_out, loc.top_neurons("attribution", 100)).effect     # doctest: +SKIP
        0.12
    """
    _split(parts)
    return KnockoutTest(lm, pairs, neutral=neutral, prompts=prompts, evaluators=evaluators, samples=samples,
                        seed=seed).remove(parts, scale)


@dataclass(frozen=True)
class KnockoutCurve:
    """Knock-outs of more and more neurons, in the order of a score and at random.

    Attributes:
        score: the score.
        counts: how many neurons were removed at each point.
        ordered: the knock-outs in the order of the score, best first.
        controls: for each point the knock-outs of random neurons of the same layers and activation sizes.
    """

    score: str
    counts: tuple[int, ...]
    ordered: tuple[Knockout, ...]
    controls: tuple[tuple[Knockout, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return {"score": self.score, "counts": list(self.counts), "ordered": [k.to_dict() for k in self.ordered],
                "controls": [[k.to_dict() for k in several] for several in self.controls]}


def knockout_curve(test: KnockoutTest, loc: Localization, score: str = "attribution",
                   counts: Sequence[int] = (16, 32, 64, 128, 256), *, controls: int = 3, scale: float = 0.0,
                   seed: int = 0) -> KnockoutCurve:
    """Remove neurons in the order of a score, and as many random ones matched for activation size.

    Args:
        test: texts and figures of the whole model.
        loc: a localization with that score, of the same model.
        score: its name.
        counts: numbers of neurons to remove.
        controls: random draws at each count.
        scale: what removed neurons are multiplied by.
        seed: of the random draws.

    Raises:
        ToxlocError: more neurons than there are, a score that was not computed, or another model's localization.
    """
    size = _size_of(test.lm, loc)
    rng = np.random.default_rng(seed)
    order = loc.top_neurons(score, max(counts))
    ordered, random = [], []
    for count in track(list(counts), f"knock-outs by {score}"):
        ordered.append(test.remove(order[:count], scale))
        random.append(tuple(test.remove(matched(order[:count], size, rng), scale) for _ in range(controls)))
    return KnockoutCurve(score, tuple(counts), tuple(ordered), tuple(random))


def matched(chosen: Sequence[Neuron], size: Float64[np.ndarray, "n_layers d_mlp"],
            rng: np.random.Generator) -> list[Neuron]:
    """Draw for every chosen neuron another of its layer, among the nearest in activation size; none twice.

    Example:
        >>> matched([(0, 2)], np.array([[1.0, 9.0, 1.1]]), np.random.default_rng(0))
        [(0, 0)]
    """
    taken = set(chosen)
    drawn = []
    for layer, neuron in chosen:
        distance = np.abs(np.log(size[layer] + 1e-12) - np.log(size[layer, neuron] + 1e-12))
        free = [(layer, int(j)) for j in np.argsort(distance, kind="stable") if (layer, int(j)) not in taken]
        if not free:
            raise ToxlocError(f"{len(chosen)} neurons leave none in layer {layer} to compare with; remove fewer.")
        drawn.append(free[rng.integers(min(NEAREST, len(free)))])
        taken.add(drawn[-1])
    return drawn


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
    _size_of(test.lm, loc)
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


def _split(parts: Parts) -> tuple[list[int], list[Neuron]]:
    layers = [part for part in parts if isinstance(part, int)]
    neurons = [part for part in parts if not isinstance(part, int)]
    if not parts or (layers and neurons):
        raise ToxlocError("Give layers, as [3, 4], or neurons, as [(3, 17), (4, 5)]; got "
                          + ("none." if not parts else "both."))
    return layers, neurons


def _size_of(lm: LoadedModel, loc: Localization) -> Float64[np.ndarray, "n_layers d_mlp"]:
    size = loc.activation_size
    if size.shape != (lm.n_layers, lm.d_mlp):
        raise ToxlocError(f"This localization is of {loc.about.get('model')}, with {size.shape[0]} layers of "
                          f"{size.shape[1]} neurons; {lm.name} has {lm.n_layers} of {lm.d_mlp}.")
    return size
