import inspect
import json
import subprocess
import sys

import pytest

import toxloc
from tests.children import forks, hold, running
from toxloc import ToxlocError
from toxloc.evaluation.evaluators.base import FunctionEvaluator
from toxloc.evaluation.evaluators.registry import EVALUATORS, Maker
from toxloc.runs.run import _default_folder
from toxloc.runs.settings import RunSettings
from toxloc.support.files import new_folder

SMALL = dict(samples=1, max_prompts=4, max_texts=30, max_neutral=30, knockouts=0, max_new_tokens=8)


def test_the_signature_shows_every_setting():
    shown = inspect.signature(toxloc.run).parameters
    assert list(shown)[:5] == ["model", "out", "overwrite", "settings", "evaluators"]
    assert set(RunSettings.model_fields) <= set(shown)
    assert (shown["samples"].default, shown["methods"].default) == (5, ("meow2x", "trne"))


@pytest.mark.parametrize(
    ("model", "ending"),
    [("org/qwen2.5-7b", "qwen2.5-7b"), ("folder/model.gguf", "model"), ("qwen2.5-coder-1.5b", "qwen2.5-coder-1.5b")],
)
def test_the_default_folder_ends_with_the_name_of_the_model(model, ending):
    folder = _default_folder(RunSettings(model=model))
    assert folder.parent.name == "toxloc-runs"
    assert folder.name[15:] == f"-{ending}"


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_from_options_as_from_settings(tmp_path):
    first = toxloc.run(out=tmp_path / "a", methods=["trne"], **SMALL)
    second = toxloc.run(
        out=tmp_path / "b", settings=RunSettings(methods=("trne",), **SMALL | {"samples": 3}), samples=1
    )
    assert (first.path / "completions.jsonl").read_bytes() == (second.path / "completions.jsonl").read_bytes()
    assert first.results == second.results
    assert first.methods == ["baseline", "trne"]


def test_a_failed_run_leaves_no_file(tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("toxloc.runs.pipeline.evaluate", interrupted)  # after the fits
    with pytest.raises(KeyboardInterrupt):
        toxloc.run(out=tmp_path / "out", methods=("trne",), **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_overwriting_keeps_the_old_run_until_the_new_one_is_complete(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    with pytest.raises(ToxlocError, match="not empty"):
        toxloc.run(out=tmp_path / "out", **SMALL)
    monkeypatch.setattr("toxloc.runs.pipeline.localize", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        toxloc.run(out=tmp_path / "out", overwrite=True, **SMALL)
    assert (tmp_path / "out" / "mine.txt").read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@forks
def test_a_run_into_a_folder_that_another_process_writes_stops_before_the_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("toxloc.runs.pipeline.prepare", lambda *_: pytest.fail("the run went on"))
    with (
        running(hold, new_folder(tmp_path / "out"), until=(tmp_path / ".out.lock").exists),
        pytest.raises(ToxlocError, match=r"Another process is writing .*out; wait for it"),
    ):
        toxloc.run(out=tmp_path / "out", overwrite=True, **SMALL)


@pytest.mark.slow
def test_of_two_commands_that_run_into_one_folder_only_the_first_writes_it(tmp_path):
    command = [sys.executable, "-m", "toxloc", "run", "--out", str(tmp_path / "out"), "--seed"]
    options = ["--samples", "1", "--max-prompts", "4", "--max-texts", "30", "--max-neutral", "30", "--knockouts", "0"]
    processes = [subprocess.Popen([*command, seed, *options], stderr=subprocess.PIPE, text=True) for seed in ("1", "2")]
    errors = [process.communicate()[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert sorted(codes) == [0, 2]
    assert "Another process is writing" in errors[codes.index(2)]
    assert toxloc.RunResult.load(tmp_path / "out").results["seed"] == codes.index(0) + 1
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(samples=0), "samples=0"),
        (dict(budget=-1.0), "budget=-1.0"),
        (dict(evaluators=["nobody"]), "no evaluator 'nobody'"),
        (dict(methods=["nothing"]), "Unknown method 'nothing'"),
        (dict(sample=3), "no setting 'sample'"),
        (dict(model="./nowhere"), "no model folder"),
        (dict(contrast="nowhere.csv"), "no file nowhere.csv"),
        (dict(device="cuda:99"), "torch sees"),
    ],
)
def test_bad_settings_stop_before_anything_is_written(tmp_path, arguments, words):
    with pytest.raises(ToxlocError, match=words):
        toxloc.run(**{"out": tmp_path / "deep" / "out", **arguments})
    assert list(tmp_path.iterdir()) == []


def test_what_was_computed_survives_an_evaluator_that_fails(tmp_path, monkeypatch):
    """The evaluator judges the baseline and everyday prompts, and fails on the edited model."""
    calls = []

    def tires(texts):
        calls.append(len(texts))
        return [0.5] * len(texts) if len(calls) < 3 else [float("nan")] * len(texts)

    judge = Maker("tired", lambda source: FunctionEvaluator("tired", tires))
    monkeypatch.setitem(EVALUATORS, "tired", judge)
    judges = ("profanity-check", "tired")
    with pytest.raises(ToxlocError, match=r"'tired' must return .* nan .* so far are in .*out\.stopped\.$"):
        toxloc.run(out=tmp_path / "out", methods=("trne",), evaluators=judges, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["out.stopped"]
    assert toxloc.load_intervention(tmp_path / "out.stopped" / "trne").kind == "trne"
    rows = [json.loads(line) for line in (tmp_path / "out.stopped" / "completions.jsonl").read_text().splitlines()]
    assert [row["method"] for row in rows] == ["baseline"] * 8 + ["trne"] * 4
    assert [list(row["scores"]) for row in rows] == [list(judges)] * 8 + [["profanity-check"]] * 4

    with pytest.raises(ToxlocError, match=r"out\.stopped-2\.$"):  # the first folder stays
        toxloc.run(out=tmp_path / "out", methods=("trne",), evaluators=judges, **SMALL)
