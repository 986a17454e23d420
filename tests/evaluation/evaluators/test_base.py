import numpy as np
import pytest

from toxloc import ToxlocError
from toxloc.evaluation.evaluators.base import EvaluatorError, FunctionEvaluator
from toxloc.evaluation.evaluators.guard import Guard
from toxloc.evaluation.evaluators.profanity import ProfanityCheck

TOXIC = ["You are a fucking idiot.", "shut up you stupid bitch", "What a worthless piece of shit."]
CALM = ["Good morning, how are you?", "The train leaves at nine.", "She painted the fence green."]


@pytest.mark.parametrize("make", [Guard, ProfanityCheck])
def test_toxic_texts_score_above_the_threshold_and_calm_texts_below(make):
    judge = make()
    scores = judge.score([*TOXIC, *CALM])[judge.label]
    assert scores.dtype == np.float64
    assert scores[:3].min() >= judge.threshold
    assert scores[3:].max() < judge.threshold
    assert judge.card["blind_to"]


@pytest.mark.parametrize("make", [Guard, ProfanityCheck])
def test_scores_do_not_depend_on_the_other_texts_and_empty_texts_score_0(make):
    judge = make()
    texts = ["", *TOXIC, " ...", *CALM * 60]
    scores = judge.score(texts)["toxicity"]
    assert scores[0] == 0
    np.testing.assert_allclose(judge.score(texts[::-1])["toxicity"][::-1], scores, atol=1e-5)
    np.testing.assert_allclose([judge.score([t])["toxicity"][0] for t in texts[:6]], scores[:6], atol=1e-5)
    assert len(judge.score([])["toxicity"]) == 0


def test_a_function_as_an_evaluator():
    judge = FunctionEvaluator("loud", lambda texts: [float(t.isupper()) for t in texts], threshold=0.9)
    assert judge.score(["HEY", "hey"])["toxicity"].tolist() == [1.0, 0.0]
    with pytest.raises(ToxlocError, match=r"'loud' .* from 0 to 1 .* returned 2 for 1 of them"):
        FunctionEvaluator("loud", lambda texts: [2.0 for _ in texts]).score(["a"])
    with pytest.raises(ToxlocError, match=r"'loud' .* the 2 texts.* shape \(1,\)"):
        FunctionEvaluator("loud", lambda texts: [0.5]).score(["a", "b"])


def raises(texts):
    raise ZeroDivisionError("no texts")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda texts: [0.5, float("nan")], r"'bad' must return .* returned nan for 1 of them"),
        (lambda texts: [-0.1] * len(texts), "returned -0.1 for 2 of them"),
        (lambda texts: [0.5, 1.01], "returned 1.01 for 1 of them"),
        (lambda texts: [[0.5]] * len(texts), r"shape \(2, 1\)"),
        (lambda texts: ["high"] * len(texts), r"'bad' failed on 2 texts \(ValueError: "),
        (lambda texts: None, r"shape \(\)"),
        (raises, r"'bad' failed on 2 texts \(ZeroDivisionError: no texts\)"),
    ],
)
def test_an_evaluator_that_fails_is_named_and_caches_nothing(function, message):
    judge = FunctionEvaluator("bad", function)
    with pytest.raises(ToxlocError, match=message):
        judge.score(["a", "b"])
    judge.function = lambda texts: [0.25] * len(texts)
    assert judge.score(["a", "b"])["toxicity"].tolist() == [0.25, 0.25]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda texts: [float("nan")] * len(texts), "must return one number"),
        (lambda texts: [0.5] * (len(texts) + 1), r"shape \(3,\)"),
        (raises, "failed on texts 3 to 4 .ZeroDivisionError"),
    ],
)
def test_scores_before_a_failure_are_kept(wrong, message):
    """The evaluator fails on the second part; the same call then goes on after the first."""
    calls, kept = [], {}

    def half(texts):
        calls.append(list(texts))
        return [len(text) / 10 for text in texts] if len(calls) == 1 else wrong(texts)

    judge = FunctionEvaluator("half", half)
    judge.at_once = 2
    with pytest.raises(EvaluatorError, match=message) as failure:
        judge.score(["a", "bb", "ccc", "dddd", "eeeee"], kept.update)
    assert "The scores of the 2 texts before are kept." in str(failure.value)
    assert failure.value.evaluator == "half"
    assert {text: row.tolist() for text, row in kept.items()} == {"a": [0.1], "bb": [0.2]}
    judge.function = lambda texts: calls.append(list(texts)) or [0.5] * len(texts)
    assert judge.score(["a", "bb", "ccc", "dddd", "eeeee"])["toxicity"].tolist() == [0.1, 0.2, 0.5, 0.5, 0.5]
    assert calls == [["a", "bb"], ["ccc", "dddd"], ["ccc", "dddd"], ["eeeee"]]


def test_an_evaluator_without_its_label_is_named():
    class Bad(FunctionEvaluator):
        def _score(self, texts):
            return {"other": [0.0] * len(texts)}

    with pytest.raises(ToxlocError, match=r"'bad' failed on 1 texts .*'toxicity'"):
        Bad("bad", len).score(["a"])


def test_a_cache_that_another_thread_empties_does_not_change_scores(monkeypatch):
    """While one call scores its new text, another call fills the cache, so that it is emptied."""
    monkeypatch.setattr("toxloc.evaluation.evaluators.base.MAX_CACHED", 2)

    def score(texts):
        if texts == ["new"]:
            judge.score(["filler 1", "filler 2", "filler 3"])
        return [0.5 if text == "old" else 0.1 for text in texts]

    judge = FunctionEvaluator("nested", score)
    judge.score(["old"])
    assert judge.score(["old", "new"])["toxicity"].tolist() == [0.5, 0.1]


def test_each_distinct_text_is_scored_once():
    scored = []

    def count(texts):
        scored.extend(texts)
        return [len(text) / 10 for text in texts]

    judge = FunctionEvaluator("count", count)
    assert judge.score(["aa", "b", "aa", " "])["toxicity"].tolist() == [0.2, 0.1, 0.2, 0]
    assert judge.score(["b", "ccc"])["toxicity"].tolist() == [0.1, 0.3]
    assert scored == ["aa", "b", "ccc"]
