"""Score completions with evaluators."""

from collections.abc import Sequence

import numpy as np

from .evaluators.base import Evaluator, EvaluatorError
from .judgement import Judgement, combine
from .score_journal import ScoreJournal


def judge(
    completions: list[list[str]],
    evaluators: Sequence[Evaluator],
    *,
    all_labels: bool = False,
    journal: ScoreJournal | None = None,
) -> dict[str, Judgement]:
    """Score completions with every evaluator, and add the combined judgements (see `combine`).

    Args:
        completions: [n_prompts][samples], the same number of samples for every prompt.
        evaluators: the evaluators.
        all_labels: whether to use the highest score of all labels of an evaluator, except its `other_labels`, instead
            of the score of its deciding label.
        journal: file that keeps the scores while the evaluators work; scores in it are not computed again.

    Returns:
        The judgements by name of the evaluator, then the combined judgements.

    Raises:
        EvaluatorError: an evaluator failed; the error holds the judgements of the evaluators before it.
    """
    judgements: dict[str, Judgement] = {}
    for evaluator in evaluators:
        try:
            labels = judge_labels(completions, evaluator, journal)
        except EvaluatorError as error:
            error.completions, error.judgements = completions, judgements
            raise
        scores = (
            np.maximum.reduce([labels[name].scores for name in labels if name not in evaluator.other_labels])
            if all_labels
            else (labels[evaluator.label].scores)
        )
        judgements[evaluator.name] = Judgement(scores, scores >= evaluator.threshold)
    return combine(judgements)


def judge_labels(
    completions: list[list[str]], evaluator: Evaluator, journal: ScoreJournal | None = None
) -> dict[str, Judgement]:
    """Score completions [n_prompts][samples] with one evaluator; its threshold applies to each of its labels."""
    flat = [text for texts in completions for text in texts]
    scores = journal.score(evaluator, flat) if journal else evaluator.score(flat)
    by_label = {
        label: np.asarray(values, dtype=np.float64).reshape(len(completions), -1) for label, values in scores.items()
    }
    return {label: Judgement(values, values >= evaluator.threshold) for label, values in by_label.items()}
