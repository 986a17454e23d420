"""Do the judges agree, and how much does each alone miss of what they find together?"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64
from scipy import stats

from ..support.intervals import CONFIDENCE, Interval
from .toxicity import COMBINED, Judgement

RESAMPLES = 500


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% bootstrap interval over prompts."""

    value: float
    ci: Interval

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, the interval as a list, None for nan."""
        value, *ci = (None if math.isnan(one) else one for one in (self.value, *self.ci))
        return {"value": value, "ci": ci}


@dataclass(frozen=True)
class Pair:
    """How far two evaluators agree.

    Attributes:
        evaluators: their names.
        spearman: rank correlation of their scores.
        kappa: Cohen's κ of their verdicts: 0 by chance, 1 for always.
    """

    evaluators: tuple[str, str]
    spearman: Estimate
    kappa: Estimate


@dataclass(frozen=True)
class Agreement:
    """Of several evaluators on the same completions.

    Attributes:
        pairs: every pair of them.
        missed: for each the share of the completions called toxic by any evaluator that it does not call toxic.
    """

    pairs: list[Pair]
    missed: dict[str, Estimate]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return {"pairs": [{"evaluators": list(pair.evaluators), "spearman": pair.spearman.to_dict(),
                           "kappa": pair.kappa.to_dict()} for pair in self.pairs],
                "missed": {name: one.to_dict() for name, one in self.missed.items()}}


def agreement(judgements: dict[str, Judgement], seed: int = 0) -> Agreement:
    """Compare evaluators; "any" and "both" may be among the judgements and are not compared.

    A figure that is not defined (all scores or verdicts of a judge the same, nothing toxic) is nan.

    Example:
        >>> scores = np.array([[0.9, 0.8], [0.2, 0.6]])
        >>> one, other = Judgement(scores, scores > 0.5), Judgement(scores, scores > 0.7)
        >>> agreement({"a": one, "b": other}).missed["b"].value      # finds 2 of the 3
        0.333...
    """
    judges = {name: one for name, one in judgements.items() if name not in COMBINED}
    found = np.logical_or.reduce([one.toxic for one in judges.values()])
    pairs = []
    for a, b in combinations(judges, 2):
        one, other = judges[a], judges[b]
        pairs.append(Pair((a, b), _estimate(lambda i, x=one, y=other: _spearman(x.scores[i], y.scores[i]), found, seed),
                          _estimate(lambda i, x=one, y=other: kappa(x.toxic[i], y.toxic[i]), found, seed)))
    missed = {name: _estimate(lambda i, x=one: _share_missed(x.toxic[i], found[i]), found, seed)
              for name, one in judges.items()}
    return Agreement(pairs, missed)


def kappa(one: Bool[np.ndarray, "..."], other: Bool[np.ndarray, "..."]) -> float:
    """Cohen's κ (Cohen 1960): agreement beyond chance, over the most that there can be; nan if chance is certain.

    Example:
        >>> kappa(np.array([True, True, False, False]), np.array([True, False, False, False]))
        0.5
    """
    agree, p, q = (one == other).mean(), one.mean(), other.mean()
    chance = p * q + (1 - p) * (1 - q)
    return float((agree - chance) / (1 - chance)) if chance < 1 else np.nan


def _spearman(x: Float64[np.ndarray, "..."], y: Float64[np.ndarray, "..."]) -> float:
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan
    return float(stats.spearmanr(x, y, axis=None).statistic)


def _share_missed(toxic: Bool[np.ndarray, "..."], found: Bool[np.ndarray, "..."]) -> float:
    return float(1 - (toxic & found).sum() / found.sum()) if found.any() else np.nan


def _estimate(figure: Callable[..., float], like: Bool[np.ndarray, "n_prompts samples"], seed: int) -> Estimate:
    """A figure of all prompts, and its interval over prompts drawn again."""
    n = len(like)
    drawn = np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))
    values = np.array([figure(index) for index in drawn])
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]) if len(values) else (np.nan, np.nan)
    return Estimate(figure(np.arange(n)), (float(low), float(high)))
