import json

import typer
from typer.testing import CliRunner

from benchmarks import language_detection as measure

ENGLISH = "The weather is very nice today, so we went for a walk."
GERMAN = "Das Wetter ist heute sehr schön, also gingen wir spazieren."


def test_texts_and_false_alarms_are_counted():
    row = measure.measured([ENGLISH] * 3 + ["Ok"], evaluations=5, seed=0)
    assert row == {"texts": 4, "english": 3, "undecided": 1, "mistakes": 0, "evaluations": 5, "false_alarms": 0}
    row = measure.measured([ENGLISH, GERMAN], evaluations=5, seed=0)
    assert (row["mistakes"], row["false_alarms"]) == (1, 5)  # about ten of the twenty texts are German


def test_the_command_prints_and_saves(tmp_path, monkeypatch):
    sets = {"few": [ENGLISH, "Ok"]}
    monkeypatch.setattr(measure, "english_texts", lambda samples, seed: sets)
    app = typer.Typer()
    app.command()(measure.main)
    done = CliRunner().invoke(app, ["--evaluations", "2", "--out", str(tmp_path / "r.json")])
    assert done.exit_code == 0, done.output
    assert "| few | 2 | 50.0% | 50.0% | 0 | 0 of 2 |" in done.output
    assert json.loads((tmp_path / "r.json").read_text())["sets"]["few"]["english"] == 1


def test_the_sets_are_the_built_in_texts_and_completions():
    texts = measure.english_texts(samples=1, seed=0)
    counts = {name: len(of_set) for name, of_set in texts.items()}
    assert (counts["openings"], counts["toxic texts"], counts["everyday texts"]) == (260, 520, 860)
    assert counts["completions of toxloc-tiny, temperature 1"] == 260
