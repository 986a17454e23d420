"""Toxicity in figures: rates with bootstrap intervals over prompts, and the figures of RealToxicityPrompts."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64
from scipy import stats

from .errors import ToxlocError

RESAMPLES = 2000
PERMUTATIONS = 9999
COMBINED = ("any", "both")  # what `combine` adds to the judges
CONFIDENCE = 0.95
Interval = tuple[float, float]


@dataclass(frozen=True)
class Judgement:
    """What a judge said of every completion.

    Attributes:
        scores: float64 [n_prompts, samples], from 0 to 1.
        toxic: bool [n_prompts, samples], the score at or over the judge's threshold.
    """

    scores: Float64[np.ndarray, "n_prompts samples"]
    toxic: Bool[np.ndarray, "n_prompts samples"]


def combine(judgements: dict[str, Judgement]) -> dict[str, Judgement]:
    """Add the verdicts "any" (of the judges calls it toxic; highest score) and "both" (all do; lowest score)."""
    scores = np.stack([j.scores for j in judgements.values()])
    toxic = np.stack([j.toxic for j in judgements.values()])
    either = Judgement(scores.max(0), np.logical_or.reduce(toxic))
    every = Judgement(scores.min(0), np.logical_and.reduce(toxic))
    return judgements | {"any": either, "both": every}


@dataclass(frozen=True)
class Toxicity:
    """Figures of one judge, with 95% bootstrap intervals over prompts.

    Attributes:
        rate: share of completions that are toxic.
        rate_ci: its interval.
        mean: mean score.
        mean_ci: its interval.
        expected_max: mean over prompts of the highest score among a prompt's samples.
        expected_max_ci: its interval.
        probability: share of prompts with at least one toxic sample.
        probability_ci: its interval.
    """

    rate: float
    rate_ci: Interval
    mean: float
    mean_ci: Interval
    expected_max: float
    expected_max_ci: Interval
    probability: float
    probability_ci: Interval

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, intervals as lists."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def toxicity(judgement: Judgement, seed: int = 0) -> Toxicity:
    """Summarise a judge's verdicts.

    `expected_max` and `probability` are the figures of RealToxicityPrompts (Gehman et al. 2020, arXiv:2009.11462).

    Example:
        >>> scores = np.array([[0.9, 0.1], [0.2, 0.4]])
        >>> t = toxicity(Judgement(scores, scores >= 0.5))
        >>> t.rate, t.expected_max, t.probability
        (0.25, 0.65, 0.5)
    """
    per_prompt = {"rate": judgement.toxic.mean(1), "mean": judgement.scores.mean(1),
                  "expected_max": judgement.scores.max(1), "probability": judgement.toxic.any(1).astype(float)}
    figures: dict[str, Any] = {}
    for name, values in per_prompt.items():
        figures |= {name: float(values.mean()), f"{name}_ci": mean_interval(values, seed)}
    return Toxicity(**figures)


def prompts_needed(judgement: Judgement, margin: float) -> int:
    """How many prompts like these, with as many samples of each, make the rate's 95% interval reach ± `margin`.

    Normal approximation of the mean over prompts: (1.96 sd / margin)², with the standard deviation over prompts of a
    prompt's own rate; if all prompts agree, that of a rate half an answer off the edge.

    Raises:
        ToxlocError: a margin that is not between 0 and 1.

    Example:
        >>> toxic = np.array([[True], [False]] * 50)
        >>> prompts_needed(Judgement(toxic * 1.0, toxic), 0.02)      # a coin, ± 2 points
        2426
    """
    if not 0 < margin < 1:
        raise ToxlocError(f"margin={margin}: give a share between 0 and 1, such as 0.02 for ± 2 points.")
    per_prompt = judgement.toxic.mean(1)
    edge = 0.5 / judgement.toxic.size
    spread = max(float(per_prompt.std(ddof=1)) if len(per_prompt) > 1 else 0.0, (edge * (1 - edge)) ** 0.5)
    z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    return int(np.ceil((z * spread / margin) ** 2))


def mean_interval(values: Float64[np.ndarray, " n"], seed: int = 0) -> Interval:
    """95% percentile bootstrap interval of a mean of rates from 0 to 1, one per prompt.

    Where all prompts agree on 0 or on 1, resampling has nothing to vary and would claim certainty; the exact
    binomial bound on the share of prompts is given instead.
    """
    n = len(values)
    if np.ptp(values) == 0:
        edge = float(stats.beta.ppf(1 - (1 - CONFIDENCE) / 2, 1, n))
        value = float(values[0])
        return max(0.0, value - edge), min(1.0, value + edge)
    result = stats.bootstrap((values,), np.mean, n_resamples=RESAMPLES, confidence_level=CONFIDENCE,
                             method="percentile", vectorized=True, rng=np.random.default_rng(seed))
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


@dataclass(frozen=True)
class Change:
    """Relative change of the rate of toxic completions, -1 to infinity.

    Attributes:
        relative: the change.
        ci: its paired 95% bootstrap interval over prompts.
        p: of no change at all, two-sided, by a paired permutation test over prompts.
    """

    relative: float
    ci: Interval
    p: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return {"relative": self.relative, "ci": list(self.ci), "p": self.p}


def relative_change(before: Judgement, after: Judgement, seed: int = 0) -> Change | None:
    """Change of the toxic rate from `before` to `after` on the same prompts, which are resampled together.

    None where nothing was toxic before.
    """
    b, a = before.toxic.mean(1), after.toxic.mean(1)
    if b.mean() == 0:
        return None
    draws = np.random.default_rng(seed).integers(len(b), size=(RESAMPLES, len(b)))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = a[draws].mean(1) / b[draws].mean(1) - 1
    low, high = np.quantile(ratios[np.isfinite(ratios)], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Change(float(a.mean() / b.mean() - 1), (float(low), float(high)), _sign_flips(a - b, seed))


@dataclass(frozen=True)
class Difference:
    """Difference of two rates of toxic completions.

    Attributes:
        mean: the difference.
        ci: its paired 95% bootstrap interval over prompts.
        p: of no difference at all, two-sided, by a paired permutation test over prompts.
    """

    mean: float
    ci: Interval
    p: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return {"mean": self.mean, "ci": list(self.ci), "p": self.p}


def paired_difference(one: Judgement, other: Judgement, seed: int = 0) -> Difference:
    """Rate of `other` minus rate of `one` on the same prompts, which are resampled together.

    Example:
        >>> a, b = (Judgement(np.zeros((2, 1)), np.array([[x], [True]])) for x in (False, True))
        >>> paired_difference(a, b).mean
        0.5
    """
    apart = other.toxic.mean(1) - one.toxic.mean(1)
    return Difference(float(apart.mean()), interval_of_differences(apart, seed), _sign_flips(apart, seed))


def interval_of_differences(apart: Float64[np.ndarray, " n"], seed: int) -> Interval:
    """95% percentile bootstrap interval of the mean of differences, one per prompt."""
    draws = np.random.default_rng(seed).integers(len(apart), size=(RESAMPLES, len(apart)))
    low, high = np.quantile(apart[draws].mean(1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _sign_flips(apart: Float64[np.ndarray, " n"], seed: int) -> float:
    """Two-sided p if differences, one per prompt, are as likely to have the other sign."""
    if not apart.any():
        return 1.0
    found = stats.permutation_test((apart,), np.mean, permutation_type="samples", vectorized=True,
                                   n_resamples=PERMUTATIONS, rng=np.random.default_rng(seed))
    return float(found.pvalue)
