"""Knock-outs: turn parts of a model down and measure whether toxic text becomes less likely, and at what cost.

A score claims that a part carries toxicity. The test removes the part (or turns it down) and measures the *effect*: the
rise of the NLL of toxic text minus the rise of the NLL of neutral text, in nats per token. A score is useful if parts
with a high score have a larger effect than other parts of the same size, on held-out texts: localize on one half of a
contrast set (`ContrastSet.split`) and test on the other.
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
from ..support.arguments import as_list, check_kind
from ..support.intervals import Interval, bootstrap
from ..texts.contrast import ContrastSet
from ..texts.neutral import AnyNeutral, measured_texts
from ..texts.prompts import PromptSet

BREAKS = 0.5  # nats per token, a perplexity of 1.65 times that of the intact model
Parts = Sequence[AnySite] | Sequence[tuple[AnySite, int]]


@dataclass(frozen=True)
class Knockout:
    """The result of turning parts of a model down.

    Attributes:
        sites: sites turned down as a whole; a layer means its MLP.
        units: units turned down: neurons or heads.
        scale: factor of the sites or units.
        toxic_rise: rise of the NLL of toxic text, in nats per token.
        neutral_rise: rise of the NLL of neutral text, in nats per token.
        effect: toxic_rise - neutral_rise; positive if the parts carry toxicity.
        effect_ci: 95% bootstrap interval of `effect` over texts.
        perplexity_ratio: perplexity of everyday text divided by that of the intact model; None without such text.
        toxic_rate: share of sampled completions that any evaluator calls toxic; None without prompts.
        toxic_rate_before: `toxic_rate` of the intact model.
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
    def breaks_model(self) -> bool:
        """Whether the NLL of neutral text rises by more than 0.5 nats per token, to 1.65 times the perplexity.

        Then the model no longer predicts ordinary text, and `effect` says little about toxicity. The MLP of the first
        layer is often such a part.
        """
        return self.neutral_rise > BREAKS

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers of the sites that were turned down."""
        return tuple(site.layer for site in self.sites)

    @property
    def neurons(self) -> tuple[tuple[int, int], ...]:
        """Units that were turned down, as (layer, unit)."""
        return tuple((site.layer, unit) for site, unit in self.units)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name. An MLP is given as its layer; of the units, only their number is given."""
        figures = {name: value for name, value in asdict(self).items() if name not in ("sites", "units")}
        return {
            "layers": [site.layer if site.part == "mlp" else str(site) for site in self.sites],
            "neurons": len(self.units),
            **figures,
            "effect_ci": list(self.effect_ci),
            "breaks_model": self.breaks_model,
        }


class KnockoutTest:
    """Measure the intact model once, then any number of knock-outs against it.

    Args:
        lm: the model, including the interventions that are applied to it.
        pairs: toxic and neutral texts, preferably held out from every score.
        neutral: everyday text for the perplexity; None to leave out the perplexity.
        prompts: prompts to sample completions from; None to leave out sampling.
        evaluators: evaluators of the completions.
        samples: number of completions per prompt.
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
        check_kind(pairs, ContrastSet, "the contrast set")
        if prompts is not None:
            check_kind(prompts, PromptSet, "the prompts")
        self.lm, self.pairs, self.prompts = lm, pairs, prompts
        self.neutral = None if neutral is None else measured_texts(neutral)
        self.samples, self.seed = samples, seed
        self.evaluators = get_evaluators(evaluators) if prompts is not None else []
        (self._toxic, self._n_toxic), (self._neutral, self._n_neutral) = self._read()
        self._everyday = mean_nll(lm, self.neutral) if self.neutral else None
        self._rate = self._toxic_rate()

    def remove(self, parts: Parts, scale: float = 0.0) -> Knockout:
        """Turn parts down, measure the effect, and restore the model. See `knockout`."""
        sites, units = split_parts(parts)
        down = Meow2X(layers=sites, neurons=units, scale=scale)
        with down.applied(self.lm):
            (toxic, _), (neutral, _) = self._read()
            everyday = mean_nll(self.lm, self.neutral) if self.neutral else None
            rate = self._toxic_rate()
        rises = toxic - self._toxic, neutral - self._neutral
        means = [rise.sum() / count.sum() for rise, count in zip(rises, (self._n_toxic, self._n_neutral), strict=True)]
        return Knockout(
            tuple(down.sites),
            tuple(down.units),
            scale,
            float(means[0]),
            float(means[1]),
            float(means[0] - means[1]),
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
    """Turn parts of a model down, measure the effect, and restore the model.

    Args:
        lm: the model.
        pairs: toxic and neutral texts whose NLL is compared.
        parts: layers, as [3, 4]; sites, as [Site(3, "attention")]; or units, as [(3, 17), (Site(4, "attention"), 5)].
        scale: factor of the parts; 0 removes them.
        neutral: everyday text for the perplexity; None to leave out the perplexity.
        prompts: prompts to sample completions from; None to leave out sampling.
        evaluators: evaluators of the completions.
        samples: number of completions per prompt.
        seed: seed for the samples and the bootstrap.

    Raises:
        ToxlocError: no parts, sites mixed with units, parts that the model does not have, or a scale outside [0, 1].

    Example:
        >>> knockout(lm, held_out, loc.top_neurons("attribution", 100)).effect     # doctest: +SKIP
        0.12
    """
    split_parts(parts)
    return KnockoutTest(
        lm, pairs, neutral=neutral, prompts=prompts, evaluators=evaluators, samples=samples, seed=seed
    ).remove(parts, scale)


def split_parts(parts: Parts) -> tuple[list[Site], list[Unit]]:
    """Split parts into sites and units.

    Raises:
        ToxlocError: there are no parts, or both sites and units.
    """
    given: list[AnySite | tuple[AnySite, int]] = as_list(parts, "the parts")
    sites = [Site.of(part) for part in given if not isinstance(part, tuple)]
    units = [unit_of(part) for part in given if isinstance(part, tuple)]
    if (not sites and not units) or (sites and units):
        raise ToxlocError(
            "Give either layers, such as [3, 4], or neurons, such as [(3, 17), (4, 5)]; got "
            + ("both." if sites else "none.")
        )
    return sites, units


def unit_sizes(lm: LoadedModel, loc: Localization, part: str | None = None) -> BySite[Float64[np.ndarray, " n_units"]]:
    """Return the activation size of every unit from a localization of this model.

    Raises:
        ToxlocError: the localization is of a model of another shape.
    """
    sites, sizes = loc.sites(part), loc.unit_sizes()
    expected = [site for site in lm.sites() if site.part in {localized.part for localized in sites}]
    if set(sites) != set(expected) or any(len(sizes[site]) != lm.at(site).n_units for site in sites):
        raise ToxlocError(
            f"This localization is of {loc.about.get('model')}, which has {len(sites)} layers of "
            f"{len(sizes[sites[0]])} {UNITS[sites[0].part]}s; {lm.name} has {len(expected)} layers of "
            f"{lm.at(expected[0]).n_units}. Localize {lm.name} first."
        )
    return BySite({site: sizes[site] for site in sites})
