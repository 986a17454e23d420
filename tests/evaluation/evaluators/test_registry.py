import json

import numpy as np
import pytest

from toxloc import ToxlocError
from toxloc.evaluation.evaluators.base import FunctionEvaluator
from toxloc.evaluation.evaluators.guard import FOLDER, Guard, normalise
from toxloc.evaluation.evaluators.profanity import ProfanityCheck
from toxloc.evaluation.evaluators.registry import DEFAULT, get_evaluators

TOXIC = ["You are a fucking idiot.", "shut up you stupid bitch", "What a worthless piece of shit."]
CALM = ["Good morning, how are you?", "The train leaves at nine.", "She painted the fence green."]


@pytest.mark.parametrize("make", [Guard, ProfanityCheck])
def test_toxic_over_calm(make):
    judge = make()
    scores = judge.score([*TOXIC, *CALM])[judge.label]
    assert scores.dtype == np.float64
    assert scores[:3].min() >= judge.threshold
    assert scores[3:].max() < judge.threshold
    assert judge.card["blind_to"]


@pytest.mark.parametrize("make", [Guard, ProfanityCheck])
def test_order_and_company_do_not_matter_and_empty_texts_score_nothing(make):
    judge = make()
    texts = ["", *TOXIC, " ...", *CALM * 60]
    scores = judge.score(texts)["toxicity"]
    assert scores[0] == 0
    np.testing.assert_allclose(judge.score(texts[::-1])["toxicity"][::-1], scores, atol=1e-5)
    np.testing.assert_allclose([judge.score([t])["toxicity"][0] for t in texts[:6]], scores[:6], atol=1e-5)
    assert len(judge.score([])["toxicity"]) == 0


def test_the_guard_reads_the_text_and_not_its_formatting():
    guard = Guard()
    a, b = guard.score(["You IDIOT!!!", '@someone you "idiot" https://x.org/y'])["toxicity"]
    assert a == pytest.approx(b, abs=1e-6)
    assert normalise("Hey  @you , LOOK at http://a.b/c ... \u201cnow\u201d!!") == "hey, look at. now"


def test_the_guards_threshold_is_the_calibrated_one_and_says_how_it_came_about():
    calibration = json.loads((FOLDER / "calibration.json").read_text())
    assert Guard().threshold == calibration["threshold"]
    assert calibration["everyday_rate"] == pytest.approx(0.01, abs=0.002)
    assert "benchmarks.calibrate_guard" in calibration["command"]


def test_a_users_function():
    judge = FunctionEvaluator("loud", lambda texts: [float(t.isupper()) for t in texts], threshold=0.9)
    assert judge.score(["HEY", "hey"])["toxicity"].tolist() == [1.0, 0.0]
    with pytest.raises(ToxlocError, match="'loud' must return one number from 0 to 1"):
        FunctionEvaluator("loud", lambda texts: [2.0 for _ in texts]).score(["a"])
    with pytest.raises(ToxlocError, match="one number"):
        FunctionEvaluator("loud", lambda texts: [0.5]).score(["a", "b"])


def test_names():
    assert [judge.name for judge in get_evaluators(DEFAULT)] == list(DEFAULT)
    with pytest.raises(ToxlocError, match="no evaluator 'gard'; there are toxloc-guard"):
        get_evaluators(["gard"])
    with pytest.raises(ToxlocError, match="different names"):
        get_evaluators(["toxloc-guard", "toxloc-guard"])
    with pytest.raises(ToxlocError, match="different names"):
        get_evaluators([FunctionEvaluator("any", lambda t: [0.0] * len(t))])
    with pytest.raises(ToxlocError, match="At least one"):
        get_evaluators([])
