import json
import shlex

import pytest
from pydantic import ValidationError

from toxloc import ToxlocError
from toxloc.runs.settings import RunSettings


def test_the_command_repeats_the_settings():
    s = RunSettings(model="my model", evaluators=("profanity-check",), budget=0.02, methods=("aura", "trne"))
    assert shlex.split(s.command()) == [
        "toxloc",
        "run",
        "--model",
        "my model",
        "--method",
        "aura",
        "--method",
        "trne",
        "--evaluator",
        "profanity-check",
        "--budget",
        "0.02",
    ]
    assert RunSettings().command() == "toxloc run"


def test_meow2x_has_a_separate_budget():
    s = RunSettings(budget=0.03, meow2x_budget=0.04)
    assert [s.budget_of(name) for name in ("meow2x", "trne", "aura")] == [0.04, 0.03, 0.03]


def test_they_can_be_saved_as_json_and_loaded_again():
    s = RunSettings(methods=("steering",), check="my.txt", samples=2)
    assert RunSettings(**json.loads(json.dumps(s.model_dump(mode="json")))) == s


def test_they_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        RunSettings().samples = 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(budget=5.0), "budget=5.0: it must be less than 1."),
        (dict(budget=0.0), "budget=0.0: it must be greater than 0."),
        (dict(meow2x_budget=-0.1), "meow2x_budget=-0.1: it must be greater than 0."),
        (dict(max_texts=7), "max_texts=7: it must be greater than or equal to 8."),
        (dict(dtype="float8"), "dtype='float8': it must be 'float32', 'bfloat16' or 'float16'."),
        (dict(evaluators=()), "evaluators=(): "),
        (dict(evaluators=("nobody",)), "There is no evaluator 'nobody'; choose one of "),
        (dict(methods=()), "methods=(): "),
        (dict(methods=("trne", "trn")), "Unknown method 'trn'; choose one of trne, meow2x, ablation"),
        (dict(sample=3), "There is no setting 'sample'; choose one of "),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ToxlocError) as error:
        RunSettings.of(**options)
    assert str(error.value).startswith(message)
