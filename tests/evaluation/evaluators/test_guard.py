import json

import pytest

from toxloc.evaluation.evaluators.guard import FOLDER, Guard, normalise


def test_formatting_does_not_change_the_score():
    guard = Guard()
    a, b = guard.score(["You IDIOT!!!", '@someone you "idiot" https://x.org/y'])["toxicity"]
    assert a == pytest.approx(b, abs=1e-6)
    assert normalise("Hey  @you , LOOK at http://a.b/c ... \u201cnow\u201d!!") == "hey, look at. now"


def test_the_threshold_comes_from_the_calibration():
    calibration = json.loads((FOLDER / "calibration.json").read_text())
    assert Guard().threshold == calibration["threshold"]
    assert calibration["everyday_rate"] == pytest.approx(0.01, abs=0.002)
    assert "benchmarks.calibrate_guard" in calibration["command"]
