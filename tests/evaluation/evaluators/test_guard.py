import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from toxloc.evaluation.evaluators.guard import FOLDERS, Guard, normalise
from toxloc.evaluation.evaluators.registry import get_evaluators
from toxloc.evaluation.evaluators.rtp import ATTRIBUTES

TEXT = "You are a stupid idiot"


@pytest.fixture(scope="module", params=FOLDERS)
def guard(request):
    return Guard(request.param)


def logits_of(folder, text):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([[*tokenizer(normalise(text))["input_ids"], tokenizer.eos_token_id]])
    with torch.inference_mode():
        return model.score(model.transformer(ids).last_hidden_state)[0, -1].double().numpy()


def test_version_2_scores_are_the_sigmoids_of_the_logits():
    scores = Guard(2).score([TEXT])
    assert tuple(scores) == ATTRIBUTES
    expected = 1 / (1 + np.exp(-logits_of(FOLDERS[2], TEXT)))
    np.testing.assert_allclose([scores[name][0] for name in ATTRIBUTES], expected, atol=1e-6)


def test_version_1_scores_are_the_probability_of_the_class_toxic():
    """Version 1 is the classifier of toxloc 0.2, with its threshold."""
    scores = Guard(1).score([TEXT])
    neutral, toxic = logits_of(FOLDERS[1], TEXT)
    assert list(scores) == ["toxicity"]
    assert scores["toxicity"][0] == pytest.approx(1 / (1 + np.exp(neutral - toxic)), abs=1e-6)
    assert Guard(1).threshold == 0.933


def test_names_and_thresholds_of_the_versions():
    wanted = ["toxloc-guard@1", "toxloc-guard"]
    assert [(e.name, e.version) for e in get_evaluators(wanted)] == [("toxloc-guard@1", 1), ("toxloc-guard", 2)]
    (judge,) = get_evaluators(["toxloc-guard@1@0.25"])
    assert (judge.version, judge.threshold) == (1, 0.25)
    (judge,) = get_evaluators(["toxloc-guard@1.0"])
    assert (judge.version, judge.threshold) == (2, 1.0)


def test_the_versions_have_different_fingerprints(guard):
    other = Guard(3 - guard.version)
    guard.prepare()
    other.prepare()
    assert guard.about()["weights"] == guard.weights != other.weights
    assert len(guard.weights) == 64


def test_formatting_does_not_change_the_score(guard):
    a, b = guard.score(["You IDIOT!!!", '@someone you "idiot" https://x.org/y'])["toxicity"]
    assert a == pytest.approx(b, abs=1e-6)
    assert normalise("Hey  @you , LOOK at http://a.b/c ... \u201cnow\u201d!!") == "hey, look at. now"


def test_the_threshold_comes_from_the_calibration(guard):
    calibration = json.loads((guard.folder / "calibration.json").read_text())
    assert guard.threshold == calibration["threshold"]
    assert calibration["everyday_rate"] == pytest.approx(0.01, abs=0.002)
    assert "benchmarks.calibrate_guard" in calibration["command"]
