"""Toxicity in figures: rates with bootstrap intervals over prompts, and the figures of RealToxicityPrompts."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64
from scipy import stats

from ..errors import ToxlocError
from ..support.intervals import CONFIDENCE, Interval, mean_interval

COMBINED = ("any", "both")  # what `combine` adds to the judges


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
