import inspect

import pytest

import toxloc
from toxloc import ToxlocError
from toxloc.runs.settings import RunSettings

SMALL = dict(samples=1, max_prompts=4, max_texts=30, max_neutral=30, knockouts=0, max_new_tokens=8)


def test_the_signature_shows_every_setting():
    shown = inspect.signature(toxloc.run).parameters
    assert list(shown)[:5] == ["model", "out", "overwrite", "settings", "evaluators"]
    assert set(RunSettings.model_fields) <= set(shown)
    assert (shown["samples"].default, shown["methods"].default) == (5, ("meow2x", "trne"))


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
