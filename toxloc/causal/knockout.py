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

from ..errors import ToxlocError
from ..evaluation.cost.perplexity import mean_nll, nll_per_text
from ..evaluation.evaluate import evaluate
from ..evaluation.evaluators.base import Evaluator
from ..evaluation.evaluators.registry import DEFAULT
from ..interventions.methods.meow2x import Meow2X
from ..localization.result import Localization
from ..models.loaded import LoadedModel
from ..support.intervals import CONFIDENCE, Interval
from ..texts.contrast import ContrastSet
from ..texts.prompts import PromptSet

Neuron = tuple[int, int]
Parts = Sequence[int] | Sequence[Neuron]
RESAMPLES = 1000


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
        layers, neurons = split_parts(parts)
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
    split_parts(parts)
    return KnockoutTest(lm, pairs, neutral=neutral, prompts=prompts, evaluators=evaluators, samples=samples,
                        seed=seed).remove(parts, scale)


def split_parts(parts: Parts) -> tuple[list[int], list[Neuron]]:
    layers = [part for part in parts if isinstance(part, int)]
    neurons = [part for part in parts if not isinstance(part, int)]
    if not parts or (layers and neurons):
        raise ToxlocError("Give layers, as [3, 4], or neurons, as [(3, 17), (4, 5)]; got "
                          + ("none." if not parts else "both."))
    return layers, neurons


def size_of(lm: LoadedModel, loc: Localization) -> Float64[np.ndarray, "n_layers d_mlp"]:
    size = loc.activation_size
    if size.shape != (lm.n_layers, lm.d_mlp):
        raise ToxlocError(f"This localization is of {loc.about.get('model')}, with {size.shape[0]} layers of "
                          f"{size.shape[1]} neurons; {lm.name} has {lm.n_layers} of {lm.d_mlp}.")
    return size
