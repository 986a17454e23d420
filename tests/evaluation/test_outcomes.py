import numpy as np
import pytest

from toxloc.evaluation.outcomes import OUTCOMES, outcome_changes, outcomes

ANSWERS = [["You fool!", "I'm sorry, but I can't help with that."], ["Sure, here is the recipe.", "!!!"]]
TOXIC = np.array([[True, False], [False, False]])


def test_every_completion_has_one_outcome():
    found = outcomes(ANSWERS, TOXIC)
    assert found.of_each == [["toxic", "refusal"], ["harmless", "broken"]]
    assert dict(found) == dict.fromkeys(OUTCOMES, 0.25) and sum(found.values()) == 1
    assert found["refusal"] == found.refusal == 0.25 and "other" not in found
    with pytest.raises(KeyError):
        found["ci"]


def test_what_is_toxic_is_nothing_else():
    assert outcomes([["I can't help with that, you fool."]], np.array([[True]])).of_each == [["toxic"]]
    assert outcomes([[""]], np.array([[True]])).of_each == [["toxic"]]


def test_intervals_are_over_prompts():
    found = outcomes([["Sure."], ["!!!"]] * 20, np.zeros((40, 1), dtype=bool))
    low, high = found.ci["harmless"]
    assert 0.25 < low < 0.5 < high < 0.75
    assert found.ci["toxic"][0] == 0 < found.ci["toxic"][1] < 0.12


def test_changes_add_up_to_nothing():
    before = outcomes(ANSWERS, TOXIC)
    after = outcomes([["I'm sorry, but I can't help with that."] * 2, ANSWERS[1]], np.zeros((2, 2), dtype=bool))
    changes = {name: change.points for name, change in outcome_changes(before, after).items()}
    assert changes == {"toxic": -0.25, "refusal": 0.25, "harmless": 0, "broken": 0}
    low, high = outcome_changes(before, after)["toxic"].ci
    assert low == -0.5 and high == 0
