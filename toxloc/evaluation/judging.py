"""Let evaluators score completions."""

from collections.abc import Sequence

import numpy as np

from .evaluators.base import Evaluator
from .toxicity import Judgement, combine


def judge(completions: list[list[str]], evaluators: Sequence[Evaluator], *,
          all_labels: bool = False) -> dict[str, Judgement]:
    """Let every evaluator score completions [n_prompts][samples]; add "any" and "both".

    Args:
        completions: as many of every prompt.
        evaluators: judges.
        all_labels: a completion's score is the highest of all labels, instead of the deciding one.
    """
    found = {}
    for evaluator in evaluators:
        labels = judge_labels(completions, evaluator)
        scores = np.maximum.reduce([one.scores for one in labels.values()]) if all_labels else (
            labels[evaluator.label].scores)
        found[evaluator.name] = Judgement(scores, scores >= evaluator.threshold)
    return combine(found)


def judge_labels(completions: list[list[str]], evaluator: Evaluator) -> dict[str, Judgement]:
    """Let an evaluator score completions [n_prompts][samples], label by label, all at its one threshold."""
    scores = evaluator.score([text for several in completions for text in several])
    by_label = {label: np.asarray(one, dtype=np.float64).reshape(len(completions), -1) for label, one in scores.items()}
    return {label: Judgement(one, one >= evaluator.threshold) for label, one in by_label.items()}
