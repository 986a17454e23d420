import csv
import json

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from benchmarks import evaluators
from toxloc.evaluation.evaluators.base import FunctionEvaluator

BAD = FunctionEvaluator("bad", lambda texts: [0.75 * ("bad" in text) for text in texts])


@pytest.fixture
def data(tmp_path):
    """Write the four files in their formats, with a few rows each."""
    with (tmp_path / "davidson.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(
            [["label", "text"], ["hate", "so bad"], ["offensive", "worse"], ["neither", "good"]]
        )
    (tmp_path / "paradetox.tsv").write_text('toxic\tneutral1\tneutral2\nbad one\ta one\t\nbad "two\tb two\t\n')
    rows = [
        ("derog_impl_h", "they are less", "hateful"),
        ("slur_h", "bad people", "hateful"),
        ("ident_pos_nh", "they are fine", "non-hateful"),
        ("counter_quote_nh", "he said bad", "non-hateful"),
    ]
    with (tmp_path / "hatecheck.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["functionality", "test_case", "label_gold"], *rows])
    (tmp_path / "rtp.jsonl").write_text(
        "".join(
            json.dumps({"prompt": {"text": "a", "toxicity": 0.1}, "continuation": {"text": text, "toxicity": score}})
            + "\n"
            for text, score in ((" bad", 0.9), (" nice", 0.1), (" mild", 0.2))
        )
    )
    return tmp_path


def test_figures_by_hand(data):
    results = {name: evaluators.measure(BAD, load(str(data / file))) for name, (file, load) in evaluators.SETS.items()}
    assert results["Davidson"]["auroc"] == 0.75  # of two toxic texts, the first scores higher, the second ties
    assert (results["Davidson"]["found"], results["Davidson"]["false_alarms"]) == (0.5, 0)
    assert results["ParaDetox"]["auroc"] == results["ParaDetox"]["average_precision"] == 1
    assert results["HateCheck"]["auroc"] == 0.5
    functions = results["HateCheck"]["functions"]
    assert functions["slur_h"] == {"called_toxic": 1, "auroc": 0.75}
    assert functions["derog_impl_h"] == {"called_toxic": 0, "auroc": 0.25}
    assert results["RTP continuations"]["spearman"] == pytest.approx(np.corrcoef([3, 1.5, 1.5], [3, 1, 2])[0, 1])


def test_every_function_of_hatecheck_is_in_one_group():
    functions = [function for group in evaluators.GROUPS.values() for function in group]
    assert len(functions) == len(set(functions)) == 29
    assert all(len({name.rsplit("_", 1)[1] for name in group}) == 1 for group in evaluators.GROUPS.values())


def test_calibration_error_by_hand():
    scores = np.array([0.95, 0.95, 0.05, 0.05, 1.0])
    toxic = np.array([True, False, False, False, True])
    # The bin from .9 has 3 texts (share 2/3, mean score 2.9/3); the bin up to .1 has 2 (share 0, mean score .05).
    assert evaluators.calibration_error(toxic, scores) == pytest.approx(0.6 * 0.9 / 3 + 0.4 * 0.05)


def test_the_command_compares_and_saves(data, tmp_path):
    app = typer.Typer()
    app.command()(evaluators.main)
    done = CliRunner().invoke(app, ["--data", str(data), "--out", str(tmp_path / "out.json")], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    saved = json.loads((tmp_path / "out.json").read_text())["evaluators"]
    assert list(saved) == ["toxloc-rtp", "toxloc-guard", "profanity-check"]
    assert list(saved["toxloc-guard"]["sets"]) == list(evaluators.SETS)
    assert f"{saved['profanity-check']['sets']['ParaDetox']['auroc']:.3f}" in done.output
    assert list(saved["toxloc-guard"]["sets"]["HateCheck"]["groups"]) == [
        "plain hate",
        "subtle hate",
        "mentions of identities",
        "quoted or countered hate",
    ]
    assert "subtle hate" in done.output
