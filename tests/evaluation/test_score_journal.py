import numpy as np
import pytest

from toxloc import ToxlocError
from toxloc.evaluation.evaluators.base import EvaluatorError, FunctionEvaluator
from toxloc.evaluation.score_journal import ScoreJournal


class Counting(FunctionEvaluator):
    """Scores a text by its length, with a fingerprint of weights; notes every text that it scores."""

    labels = ("toxicity", "threat")

    def __init__(self, weights="w1", fails_at=None):
        super().__init__("counting", lambda texts: texts)
        self.weights, self.fails_at, self.scored, self.at_once = weights, fails_at, [], 2

    def _score(self, texts):
        if self.fails_at in texts:
            raise OSError("the line is cut")
        self.scored += texts
        return {"toxicity": [len(text) / 10 for text in texts], "threat": [0.1 + 1e-17 for _ in texts]}


TEXTS = ["a", "bb", "ccc", "a", "dddd", ""]


def test_a_new_process_continues_after_the_failure(tmp_path):
    path = tmp_path / "scores"
    with ScoreJournal(path) as journal, pytest.raises(EvaluatorError, match="the line is cut"):
        journal.score(Counting(fails_at="dddd"), TEXTS)
    again = Counting()
    with ScoreJournal(path) as journal:
        scores = journal.score(again, TEXTS)
    assert again.scored == ["ccc", "dddd"]
    for label, values in Counting().score(TEXTS).items():
        np.testing.assert_array_equal(scores[label], values)


@pytest.mark.parametrize("other", [Counting("w2"), Counting(None), FunctionEvaluator("counting", lambda t: [0.5] * 3)])
def test_scores_of_other_weights_and_of_evaluators_without_weights_are_computed_anew(tmp_path, other):
    path = tmp_path / "scores"
    with ScoreJournal(path) as journal:
        journal.score(Counting(), ["a", "bb", "ccc"])
        journal.score(FunctionEvaluator("counting", lambda t: [0.25] * 3), ["a", "bb", "ccc"])
    with ScoreJournal(path) as journal:
        scores = journal.score(other, ["a", "bb", "ccc"])["toxicity"]
    np.testing.assert_array_equal(scores, other.score(["a", "bb", "ccc"])["toxicity"])
    assert 0.25 not in scores


def test_the_file_holds_no_text(tmp_path):
    with ScoreJournal(tmp_path / "scores") as journal:
        journal.score(Counting(), ["offensive"])
    assert "offensive" not in (tmp_path / "scores").read_text()


def test_an_incomplete_line_is_dropped(tmp_path):
    path = tmp_path / "scores"
    with ScoreJournal(path) as journal:
        journal.score(Counting(), ["a", "bb"])
    path.write_bytes(path.read_bytes()[:-3])
    again = Counting()
    with ScoreJournal(path) as journal:
        journal.score(again, ["a", "bb"])
    assert again.scored == ["bb"]
    assert path.read_bytes().count(b"\n") == 2


@pytest.mark.parametrize(
    "line",
    ["text", "[1]", '["j", "d", [2.0]]', '["j", "d", [true]]', '["j", "d", 1]', '["j", "d", [NaN]]', '[[], "d", []]'],
)
def test_a_damaged_file_is_refused_and_stays(tmp_path, line):
    path = tmp_path / "scores"
    path.write_text(line + "\n")
    with pytest.raises(ToxlocError, match="scores is not a file of scores from toxloc, or is damaged; remove it"):
        ScoreJournal(path)
    assert path.read_text() == line + "\n"
