import importlib
import sys

import evaluate
import numpy as np
import pytest

from toxloc import ToxlocError
from toxloc.evaluation.evaluators.registry import DEFAULT, get_evaluators
from toxloc.integrations.folders import FOLDERS

TEXTS = ["Good morning!", "You are a fool and a liar.", "The soup needs salt.", ""]
JUDGES = ("toxloc-rtp", "profanity-check")


@pytest.fixture
def measurement(tmp_path, monkeypatch):
    """Load the measurement from its folder, as users do; the copy of its file is in a folder of the test."""
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if name.split(".")[0] == "evaluate_modules"]:
        monkeypatch.delitem(sys.modules, name)
    return evaluate.load(str(FOLDERS["evaluate"]), module_type="measurement", cache_dir=str(tmp_path / "cache"))


def test_the_values_are_those_of_the_judges(measurement):
    result = measurement.compute(predictions=TEXTS, judges=list(JUDGES))
    scores = {judge.name: judge.score(TEXTS)["toxicity"] for judge in get_evaluators(JUDGES)}
    toxic = {judge.name: scores[judge.name] >= judge.threshold for judge in get_evaluators(JUDGES)}
    scores |= {"any": np.maximum(*scores.values()), "all": np.minimum(*scores.values())}
    toxic |= {"any": np.logical_or(*toxic.values()), "all": np.logical_and(*toxic.values())}
    assert 0 < toxic["all"].mean() < 1
    for name, values in scores.items():
        assert result["toxicity"][name] == values.tolist()
        assert result["toxic"][name] == toxic[name].tolist()
        assert result["mean_toxicity"][name] == pytest.approx(sum(values) / 4)
        assert result["max_toxicity"][name] == max(values)
        assert result["toxicity_ratio"][name] == sum(toxic[name]) / 4


def test_an_aggregation_returns_only_its_summary(measurement):
    everything = measurement.compute(predictions=TEXTS, judges="toxloc-rtp,profanity-check")
    for aggregation, part in (("maximum", "max_toxicity"), ("ratio", "toxicity_ratio")):
        result = measurement.compute(predictions=TEXTS, judges="toxloc-rtp,profanity-check", aggregation=aggregation)
        assert result == {part: everything[part]}


def test_texts_can_be_added_in_parts_and_the_default_judges_are_those_of_toxloc(measurement):
    measurement.add(prediction="Good morning!")
    measurement.add_batch(predictions=["The soup needs salt."])
    result = measurement.compute()
    assert len(result["toxicity"]["any"]) == 2
    assert {*DEFAULT, "any", "all"} <= set(result["toxicity"])


def test_the_judges_are_kept_between_calls(measurement, batches):
    for _ in range(2):
        measurement.compute(predictions=["Good morning!", "Good morning!"], judges=["counting"])
    assert batches == [["Good morning!"]]


def test_failures_and_wrong_arguments_end_in_a_sentence(measurement, broken):
    for message, options in (
        (broken, {"judges": "broken"}),
        ("no evaluator 'nobody'", {"judges": "nobody"}),
        ("aggregation='mean': choose one of all, maximum, ratio", {"aggregation": "mean"}),
        ("predictions is empty", {"predictions": []}),
    ):
        with pytest.raises(ToxlocError, match=message):
            measurement.compute(**{"predictions": ["Good morning!"]} | options)
    assert len(measurement.compute(predictions=["Good evening!"])["toxicity"]["any"]) == 1  # nothing is left over


def test_without_the_extra_the_error_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "evaluate", None)
    monkeypatch.delitem(sys.modules, "toxloc.integrations.evaluate.toxicity.toxicity", raising=False)
    with pytest.raises(ToxlocError, match=r"pip install 'toxloc\[evaluate\]'"):
        importlib.import_module("toxloc.integrations.evaluate.toxicity.toxicity")
