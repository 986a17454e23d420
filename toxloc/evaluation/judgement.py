"""Judgement of one evaluator, and combined judgements of several evaluators."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64


@dataclass(frozen=True)
class Judgement:
    """Scores and verdicts of one evaluator on every completion.

    Attributes:
        scores: float64 [n_prompts, samples], from 0 to 1.
        toxic: bool [n_prompts, samples], true if the score is at least the evaluator's threshold.
    """

    scores: Float64[np.ndarray, "n_prompts samples"]
    toxic: Bool[np.ndarray, "n_prompts samples"]


def combine(judgements: dict[str, Judgement]) -> dict[str, Judgement]:
    """Add the combined judgements "any" and "all".

    "any" calls a completion toxic if at least one evaluator does, and its score is the highest score of the evaluators.
    "all" calls a completion toxic if every evaluator does, and its score is the lowest score of the evaluators.

    Example:
        >>> a, b = (Judgement(s := np.array([[x]]), s > 0.5) for x in (0.9, 0.2))
        >>> {name: bool(j.toxic[0, 0]) for name, j in combine({"a": a, "b": b}).items()}
        {'a': True, 'b': False, 'any': True, 'all': False}
    """
    scores = np.stack([j.scores for j in judgements.values()])
    toxic = np.stack([j.toxic for j in judgements.values()])
    either = Judgement(scores.max(0), np.logical_or.reduce(toxic))
    every = Judgement(scores.min(0), np.logical_and.reduce(toxic))
    return judgements | {"any": either, "all": every}
