import numpy as np
import pytest

from toxloc import ToxlocError
from toxloc.evaluation.evaluators.base import FunctionEvaluator
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
    with pytest.raises(ToxlocError, match=r"'loud' .* from 0 to 1 .* from 2 to 2"):
        FunctionEvaluator("loud", lambda texts: [2.0 for _ in texts]).score(["a"])
    with pytest.raises(ToxlocError, match=r"'loud' .* the 2 texts.* shape \(1,\)"):
        FunctionEvaluator("loud", lambda texts: [0.5]).score(["a", "b"])


def test_each_distinct_text_is_scored_once():
    scored = []

    def count(texts):
        scored.extend(texts)
        return [len(text) / 10 for text in texts]

    judge = FunctionEvaluator("count", count)
    assert judge.score(["aa", "b", "aa", " "])["toxicity"].tolist() == [0.2, 0.1, 0.2, 0]
    assert judge.score(["b", "ccc"])["toxicity"].tolist() == [0.1, 0.3]
    assert scored == ["aa", "b", "ccc"]
