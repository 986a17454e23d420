"""Score completions with evaluators."""

from collections.abc import Sequence

import numpy as np

from .evaluators.base import Evaluator
from .judgement import Judgement, combine


def judge(
    completions: list[list[str]], evaluators: Sequence[Evaluator], *, all_labels: bool = False
) -> dict[str, Judgement]:
    """Score completions with every evaluator, and add the combined judgements "any" and "all".

    Args:
        completions: [n_prompts][samples], the same number of samples for every prompt.
        evaluators: the evaluators.
        all_labels: whether to use the highest score of all labels of an evaluator, instead of the score of its deciding
            label.

    Returns:
        The judgements by name of the evaluator, then "any" and "all".
    """
    judgements = {}
    for evaluator in evaluators:
        labels = judge_labels(completions, evaluator)
        scores = (
            np.maximum.reduce([judgement.scores for judgement in labels.values()])
            if all_labels
            else (labels[evaluator.label].scores)
        )
        judgements[evaluator.name] = Judgement(scores, scores >= evaluator.threshold)
    return combine(judgements)


def judge_labels(completions: list[list[str]], evaluator: Evaluator) -> dict[str, Judgement]:
    """Score completions [n_prompts][samples] with one evaluator; its threshold applies to each of its labels."""
    scores = evaluator.score([text for texts in completions for text in texts])
    by_label = {
        label: np.asarray(values, dtype=np.float64).reshape(len(completions), -1) for label, values in scores.items()
    }
    return {label: Judgement(values, values >= evaluator.threshold) for label, values in by_label.items()}
