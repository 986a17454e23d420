"""Knock-outs: turn parts of a model down and measure whether toxic text becomes less likely, and at what price.

A score claims that a part carries toxicity. The test removes the part (or turns it down) and measures the *effect*: by
how much more the NLL of toxic text rises than that of neutral text, in nats per token. A score is useful if parts with
a high score have a larger effect than other parts of the same size, on texts that the score has not seen: localize on
one half of a contrast set (`ContrastSet.split`) and test on the other.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from ..errors import ToxlocError
from ..evaluation.cost.perplexity import mean_nll, nll_per_text
from ..evaluation.evaluators.base import Evaluator
from ..evaluation.evaluators.registry import DEFAULT, get_evaluators
from ..evaluation.judging import judge
from ..generation.generate import generate
from ..interventions.methods.meow2x import Meow2X
from ..localization.result import Localization
from ..models.loaded import LoadedModel
from ..models.sites import UNITS, AnySite, BySite, Site, Unit, unit_of
from ..support.intervals import Interval, bootstrap
from ..texts.contrast import ContrastSet
from ..texts.neutral import AnyNeutral, measured_texts
from ..texts.prompts import PromptSet

Parts = Sequence[AnySite] | Sequence[tuple[AnySite, int]]


@dataclass(frozen=True)
class Knockout:
    """The result of turning parts of a model down.

    Attributes:
        sites: sites turned down as a whole; a layer means its MLP.
        units: units turned down: neurons or heads.
        scale: their factor.
        toxic_rise: rise of the NLL of toxic text, nats per token.
        neutral_rise: the same for neutral text.
        effect: toxic_rise - neutral_rise; positive if the parts carry toxicity.
        effect_ci: its 95% bootstrap interval over texts.
        perplexity_ratio: perplexity of everyday text over the whole model's; None without such text.
        toxic_rate: share of sampled completions called toxic by any evaluator; None without prompts.
        toxic_rate_before: the same for the whole model.
    """

    sites: tuple[Site, ...]
    units: tuple[Unit, ...]
    scale: float
    toxic_rise: float
    neutral_rise: float
    effect: float
    effect_ci: Interval
    perplexity_ratio: float | None = None
    toxic_rate: float | None = None
    toxic_rate_before: float | None = None

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers of the sites turned down."""
        return tuple(site.layer for site in self.sites)

    @property
    def neurons(self) -> tuple[tuple[int, int], ...]:
        """Units turned down, as (layer, unit)."""
        return tuple((site.layer, unit) for site, unit in self.units)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name; a layer's MLP by its number, and only how many units there are."""
        figures = {name: value for name, value in asdict(self).items() if name not in ("sites", "units")}
        return {
            "layers": [site.layer if site.part == "mlp" else str(site) for site in self.sites],
            "neurons": len(self.units),
            **figures,
            "effect_ci": list(self.effect_ci),
        }


class KnockoutTest:
    """The whole model's figures on some texts, against which any number of knock-outs are measured.

    Args:
        lm: the model, with whatever interventions are applied.
        pairs: toxic and neutral texts, best texts that no score has seen.
        neutral: everyday text for the perplexity; None to leave it out.
        prompts: openings to sample from; None to leave sampling out.
        evaluators: judges of the samples.
        samples: completions per prompt.
        seed: seed for the samples and the bootstrap.

    Example:
        >>> test = KnockoutTest(lm, held_out)                                  # doctest: +SKIP
        >>> [test.remove([layer]).effect for layer in range(lm.n_layers)]      # doctest: +SKIP
    """

    def __init__(
        self,
        lm: LoadedModel,
        pairs: ContrastSet,
        *,
        neutral: AnyNeutral | None = None,
        prompts: PromptSet | None = None,
        evaluators: Sequence[str | Evaluator] = DEFAULT,
        samples: int = 2,
        seed: int = 0,
    ):
        self.lm, self.pairs, self.prompts = lm, pairs, prompts
        self.neutral = None if neutral is None else measured_texts(neutral)
        self.samples, self.seed = samples, seed
        self.evaluators = get_evaluators(evaluators) if prompts is not None else []
        (self._toxic, self._n_toxic), (self._neutral, self._n_neutral) = self._read()
        self._everyday = mean_nll(lm, self.neutral) if self.neutral else None
        self._rate = self._toxic_rate()

    def remove(self, parts: Parts, scale: float = 0.0) -> Knockout:
        """Turn parts down, measure, and leave the model as it was. See `knockout`."""
        sites, units = split_parts(parts)
        down = Meow2X(layers=sites, neurons=units, scale=scale)
        with down.applied(self.lm):
            (toxic, _), (neutral, _) = self._read()
            everyday = mean_nll(self.lm, self.neutral) if self.neutral else None
            rate = self._toxic_rate()
        rises = toxic - self._toxic, neutral - self._neutral
        shares = [rise.sum() / count.sum() for rise, count in zip(rises, (self._n_toxic, self._n_neutral), strict=True)]
        return Knockout(
            tuple(down.sites),
            tuple(down.units),
            scale,
            float(shares[0]),
            float(shares[1]),
            float(shares[0] - shares[1]),
            self._interval(*rises),
            None if everyday is None or self._everyday is None else math.exp(min(everyday - self._everyday, 700.0)),
            rate,
            self._rate,
        )

    def _read(self) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        return nll_per_text(self.lm, self.pairs.toxic), nll_per_text(self.lm, self.pairs.neutral)

    def _toxic_rate(self) -> float | None:
        if self.prompts is None:
            return None
        completions = generate(self.lm, self.prompts.texts, samples=self.samples, seed=self.seed)
        return float(judge(completions, self.evaluators)["any"].toxic.mean())

    def _interval(self, toxic: Float64[np.ndarray, " n_toxic"], neutral: Float64[np.ndarray, " n_neutral"]) -> Interval:
        def effect(i: np.ndarray, j: np.ndarray) -> np.ndarray:
            difference: np.ndarray = toxic[i].sum(1) / self._n_toxic[i].sum(1) - neutral[j].sum(1) / self._n_neutral[
                j
            ].sum(1)
            return difference

        if self.pairs.paired:  # the two texts of a pair are resampled together
            return bootstrap(lambda i: effect(i, i), len(toxic), self.seed)
        return bootstrap(effect, (len(toxic), len(neutral)), self.seed)


def knockout(
    lm: LoadedModel,
    pairs: ContrastSet,
    parts: Parts,
    scale: float = 0.0,
    *,
    neutral: AnyNeutral | None = None,
    prompts: PromptSet | None = None,
    evaluators: Sequence[str | Evaluator] = DEFAULT,
    samples: int = 2,
    seed: int = 0,
) -> Knockout:
    """Turn parts of a model down and measure the effect; the model is left as it was.

    Args:
        lm: the model.
        pairs: toxic and neutral texts whose NLL is compared.
        parts: layers, as [3, 4]; sites, as [Site(3, "attention")]; or units, as [(3, 17), (Site(4, "attention"), 5)].
        scale: factor of the parts; 0 removes them.
        neutral: everyday text for the perplexity; None to leave it out.
        prompts: openings to sample from; None to leave sampling out.
        evaluators: judges of the samples.
        samples: completions per prompt.
        seed: seed for the samples and the bootstrap.

    Raises:
        ToxlocError: no parts, parts that the model has not, or a scale outside [0, 1].

    Example:
        >>> knockout(lm, held_out, loc.top_neurons("attribution", 100)).effect     # doctest: +SKIP
        0.12
    """
    split_parts(parts)
    return KnockoutTest(
        lm, pairs, neutral=neutral, prompts=prompts, evaluators=evaluators, samples=samples, seed=seed
    ).remove(parts, scale)


def split_parts(parts: Parts) -> tuple[list[Site], list[Unit]]:
    """Tell sites from units.

    Raises:
        ToxlocError: there are none, or both.
    """
    sites = [Site.of(part) for part in parts if not isinstance(part, tuple)]
    units = [unit_of(part) for part in parts if isinstance(part, tuple)]
    if (not sites and not units) or (sites and units):
        raise ToxlocError(
            "Give layers, as [3, 4], or neurons, as [(3, 17), (4, 5)]; got " + ("both." if sites else "none.")
        )
    return sites, units


def unit_sizes(lm: LoadedModel, loc: Localization, part: str | None = None) -> BySite[Float64[np.ndarray, " n_units"]]:
    """Return the size of every unit's activation in a localization.

    Raises:
        ToxlocError: the localization is of a model of another shape.
    """
    sites, sizes = loc.sites(part), loc.unit_sizes()
    expected = [site for site in lm.sites() if site.part in {one.part for one in sites}]
    if set(sites) != set(expected) or any(len(sizes[site]) != lm.at(site).n_units for site in sites):
        raise ToxlocError(
            f"This localization is of {loc.about.get('model')}, with {len(sites)} layers of "
            f"{len(sizes[sites[0]])} {UNITS[sites[0].part]}s; {lm.name} has {len(expected)} of "
            f"{lm.at(expected[0]).n_units}."
        )
    return BySite({site: sizes[site] for site in sites})
