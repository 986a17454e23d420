"""Let evaluators score completions."""

from collections.abc import Sequence

import numpy as np

from .evaluators.base import Evaluator
from .judgement import Judgement, combine


def judge(
    completions: list[list[str]], evaluators: Sequence[Evaluator], *, all_labels: bool = False
) -> dict[str, Judgement]:
    """Let every evaluator score completions, and add the verdicts "any" and "all".

    Args:
        completions: [n_prompts][samples], the same number of samples for every prompt.
        evaluators: the evaluators.
        all_labels: take the highest score of all labels of an evaluator, instead of that of its deciding label.

    Returns:
        The verdicts by name of the evaluator, then "any" and "all".
    """
    judgements = {}
    for evaluator in evaluators:
        labels = judge_labels(completions, evaluator)
        scores = (
            np.maximum.reduce([one.scores for one in labels.values()])
            if all_labels
            else (labels[evaluator.label].scores)
        )
        judgements[evaluator.name] = Judgement(scores, scores >= evaluator.threshold)
    return combine(judgements)


def judge_labels(completions: list[list[str]], evaluator: Evaluator) -> dict[str, Judgement]:
    """Let an evaluator score completions [n_prompts][samples]; its threshold holds for each of its labels."""
    scores = evaluator.score([text for several in completions for text in several])
    by_label = {label: np.asarray(one, dtype=np.float64).reshape(len(completions), -1) for label, one in scores.items()}
    return {label: Judgement(one, one >= evaluator.threshold) for label, one in by_label.items()}
