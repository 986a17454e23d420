import numpy as np
import pytest

from toxloc.evaluation.evaluators.base import EvaluatorError, FunctionEvaluator
from toxloc.evaluation.judging import judge, judge_labels


class TwoLabels(FunctionEvaluator):
    labels = ("toxicity", "threat")

    def _score(self, texts):
        return {"toxicity": [0.1 * len(text) for text in texts], "threat": [0.9 * ("x" in text) for text in texts]}


COMPLETIONS = [["a", "aaaaaa"], ["x", ""]]
TWO = TwoLabels("two", lambda texts: [])
HAS_A = FunctionEvaluator("has-a", lambda texts: [0.6 * ("a" in text) for text in texts], threshold=0.6)


def test_verdicts_by_hand():
    result = judge(COMPLETIONS, [TWO, HAS_A])
    assert list(result) == ["two", "has-a", "any", "all"]
    np.testing.assert_allclose(result["two"].scores, [[0.1, 0.6], [0.1, 0]])
    assert result["two"].toxic.tolist() == [[False, True], [False, False]]
    assert result["has-a"].toxic.tolist() == [[True, True], [False, False]]
    assert result["all"].toxic.tolist() == [[False, True], [False, False]]


def test_a_failure_carries_the_judgements_before_it():
    broken = FunctionEvaluator("broken", lambda texts: [float("nan")] * len(texts))
    with pytest.raises(EvaluatorError, match="broken") as failure:
        judge(COMPLETIONS, [TWO, broken, HAS_A])
    assert (failure.value.evaluator, list(failure.value.judgements)) == ("broken", ["two"])
    np.testing.assert_allclose(failure.value.judgements["two"].scores, [[0.1, 0.6], [0.1, 0]])
    assert failure.value.completions == COMPLETIONS
    failure.value.prompts = ["p", "q"]
    assert list(failure.value.rows())[1] == {"prompt": "p", "sample": 1, "completion": "aaaaaa", "scores": {"two": 0.6}}


def test_the_score_can_be_the_highest_of_all_labels():
    result = judge(COMPLETIONS, [TWO], all_labels=True)["two"]
    np.testing.assert_allclose(result.scores, [[0.1, 0.6], [0.9, 0]])
    assert result.toxic.tolist() == [[False, True], [True, False]]


def test_a_label_that_is_no_toxicity_does_not_count(monkeypatch):
    monkeypatch.setattr(TWO, "other_labels", ("threat",), raising=False)
    np.testing.assert_allclose(judge(COMPLETIONS, [TWO], all_labels=True)["two"].scores, [[0.1, 0.6], [0.1, 0]])


def test_judgements_of_labels_by_hand():
    result = judge_labels(COMPLETIONS, TWO)
    assert list(result) == ["toxicity", "threat"]
    np.testing.assert_allclose(result["threat"].scores, [[0, 0], [0.9, 0]])
