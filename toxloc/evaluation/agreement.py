"""Agreement between evaluators, and the share of toxic completions that each evaluator misses."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int

from ..support.intervals import Interval, central_interval, resampled
from .judgement import Judgement
from .verdicts import COMBINED

NUMBERS_AT_ONCE = 1 << 22  # float64 numbers (32 MB): largest product of completions and draws held in memory


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% bootstrap interval over prompts.

    Attributes:
        value: the figure; nan if undefined.
        ci: interval of the figure, from the draws in which the figure is defined.
    """

    value: float
    ci: Interval

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, the interval as a list, and nan as None."""
        value, *ci = (None if math.isnan(number) else number for number in (self.value, *self.ci))
        return {"value": value, "ci": ci}


@dataclass(frozen=True)
class Pair:
    """Agreement of two evaluators.

    Attributes:
        evaluators: names of the two evaluators.
        spearman: rank correlation of their scores.
        kappa: Cohen's κ of their verdicts: 0 for chance agreement, 1 for full agreement.
    """

    evaluators: tuple[str, str]
    spearman: Estimate
    kappa: Estimate


@dataclass(frozen=True)
class Agreement:
    """Agreement of several evaluators on the same completions.

    Attributes:
        pairs: every pair of evaluators.
        missed: for each evaluator, the share of completions that it does not call toxic, among the completions that at
            least one evaluator calls toxic.
    """

    pairs: list[Pair]
    missed: dict[str, Estimate]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return {
            "pairs": [
                {
                    "evaluators": list(pair.evaluators),
                    "spearman": pair.spearman.to_dict(),
                    "kappa": pair.kappa.to_dict(),
                }
                for pair in self.pairs
            ],
            "missed": {name: estimate.to_dict() for name, estimate in self.missed.items()},
        }


def agreement(judgements: dict[str, Judgement], seed: int = 0) -> Agreement:
    """Compare evaluators on the same completions.

    A figure is nan if it is undefined: if an evaluator gives all completions the same score or verdict, or if no
    completion is toxic.

    Args:
        judgements: judgements by name of the evaluator; the combined judgements, such as "any", are ignored.
        seed: seed for the bootstrap draws.

    Example:
        >>> scores = np.array([[0.9, 0.8], [0.2, 0.6]])
        >>> a, b = Judgement(scores, scores > 0.5), Judgement(scores, scores > 0.7)
        >>> agreement({"a": a, "b": b}).missed["b"].value      # b calls 2 of the 3 toxic
        0.333...
    """
    judges = {name: judgement for name, judgement in judgements.items() if name not in COMBINED}
    n, samples = next(iter(judges.values())).toxic.shape

    def figures(index: Int[np.ndarray, "draws n_prompts"]) -> Float64[np.ndarray, "figures draws"]:
        return np.stack(list(_figures(judges, _times_drawn(index, n))))

    values = figures(np.arange(n)[None])[:, 0]
    draws = resampled(figures, n, seed, at_once=max(1, NUMBERS_AT_ONCE // (n * samples)))
    estimates = (Estimate(float(value), central_interval(drawn)) for value, drawn in zip(values, draws, strict=True))
    pairs = [Pair(names, next(estimates), next(estimates)) for names in combinations(judges, 2)]
    return Agreement(pairs, {name: next(estimates) for name in judges})


def kappa(first: Bool[np.ndarray, "..."], second: Bool[np.ndarray, "..."]) -> float:
    """Cohen's κ of two evaluators' verdicts (Cohen 1960).

    κ = (agreement - chance agreement) / (1 - chance agreement); nan if the chance agreement is 1.

    Example:
        >>> kappa(np.array([True, True, False, False]), np.array([True, False, False, False]))
        0.5
    """
    return float(_kappa(*(np.asarray(share.mean()) for share in (first == second, first, second))))


def _kappa(
    agree: Float64[np.ndarray, "*draws"], p: Float64[np.ndarray, "*draws"], q: Float64[np.ndarray, "*draws"]
) -> Float64[np.ndarray, "*draws"]:
    """Compute Cohen's κ from the share of equal verdicts and each evaluator's share of toxic verdicts.

    scikit-learn's `cohen_kappa_score` is not used: it takes one pair of label lists per call, not many resamples.
    """
    chance = p * q + (1 - p) * (1 - q)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(chance < 1, (agree - chance) / (1 - chance), np.nan)


def _times_drawn(index: Int[np.ndarray, "draws n_prompts"], n: int) -> Float64[np.ndarray, "draws n_prompts"]:
    """Count how often each prompt occurs in each draw."""
    rows = len(index)
    flat = (index + n * np.arange(rows)[:, None]).ravel()
    times: np.ndarray = np.bincount(flat, minlength=rows * n).reshape(rows, n)
    return times.astype(np.float64)


def _figures(
    judges: dict[str, Judgement], times: Float64[np.ndarray, "draws n_prompts"]
) -> Iterator[Float64[np.ndarray, " draws"]]:
    """Yield Spearman's correlation and κ of every pair, then the missed share of every evaluator, for every draw.

    A completion is weighted by how often its prompt was drawn, which gives the same figures as repeating its row.
    """
    n, samples = next(iter(judges.values())).toxic.shape

    def total(selected: Bool[np.ndarray, "n_prompts samples"]) -> Float64[np.ndarray, " draws"]:
        totals: np.ndarray = times @ selected.sum(1).astype(np.float64)
        return totals

    ranks = {name: _ranks(judge.scores, times) for name, judge in judges.items()}
    weights = times.repeat(samples, axis=1)
    for a, b in combinations(judges, 2):
        yield _spearman(ranks[a], ranks[b], weights)
        left, right = judges[a].toxic, judges[b].toxic
        yield _kappa(*(total(selected) / (n * samples) for selected in (left == right, left, right)))
    toxic_by_any = np.logical_or.reduce([judge.toxic for judge in judges.values()])
    for judge in judges.values():
        with np.errstate(invalid="ignore"):
            yield 1 - total(judge.toxic & toxic_by_any) / total(toxic_by_any)


@dataclass(frozen=True)
class _Ranks:
    """Ranks of an evaluator's scores minus the mean rank, and the sum of their squares, in every draw."""

    ranks: Float64[np.ndarray, "draws n"]
    squares: Float64[np.ndarray, " draws"]


def _ranks(scores: Float64[np.ndarray, "n_prompts samples"], times: Float64[np.ndarray, "draws n_prompts"]) -> _Ranks:
    """Rank the completions in every draw; equal scores share their mean rank.

    The scores are sorted once for all draws: a rank follows from how often the lower scores were drawn.
    """
    flat = scores.ravel()
    order = np.argsort(flat, kind="stable")
    begins = np.r_[True, np.diff(flat[order]) > 0]
    weights = times[:, order // scores.shape[1]]
    drawn = np.add.reduceat(weights, np.flatnonzero(begins), axis=1)  # number of completions with each distinct score
    middle = drawn.cumsum(1) - drawn / 2 - flat.size / 2
    place = np.empty(flat.size, dtype=np.intp)
    place[order] = begins.cumsum() - 1
    return _Ranks(middle[:, place], np.einsum("ij,ij,ij->i", drawn, middle, middle))


def _spearman(x: _Ranks, y: _Ranks, weights: Float64[np.ndarray, "draws n"]) -> Float64[np.ndarray, " draws"]:
    """Correlation of the ranks (Spearman 1904) in every draw; nan if all scores of an evaluator are equal."""
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation: np.ndarray = np.einsum("ij,ij,ij->i", weights, x.ranks, y.ranks) / np.sqrt(x.squares * y.squares)
        return correlation
