import json

import pytest
import typer
from typer.testing import CliRunner

from benchmarks import faithfulness
from benchmarks.faithfulness import markdown


def area(score, measure, value):
    ends = {"low": value - 0.1, "high": value + 0.1, "above_low": -0.25, "above_high": 0.5}
    return {"score": score, "measure": measure, "value": value, "controls": 0.4, "above_controls": value - 0.4, **ends}


def test_the_table_by_hand():
    areas = [area(score, measure, 0.5) for score in ("attribution", "auroc") for measure in ("CPR", "CMD", "area")]
    areas[1]["value"] = 0.125
    table = markdown({"models": [{"model": "layer1", "n_pairs": 9, "areas": areas}]}).replace("\u00a0", " ")
    head, _, first, second = table.splitlines()
    cell = "0.500 · +0.100 [-0.250, +0.500]"
    assert head.startswith("| model | score | CPR: area, minus controls | CMD")
    assert first == f"| layer1, 9 pairs | `attribution` | {cell} | 0.125 · +0.100 [-0.250, +0.500] | {cell} |"
    assert second == f"| layer1, 9 pairs | `auroc` | {cell} | {cell} | {cell} |"


@pytest.mark.exhaustive
def test_the_command_prints_and_saves(tmp_path):
    app = typer.Typer()
    app.command()(faithfulness.main)
    out = tmp_path / "faithfulness.json"
    done = CliRunner().invoke(
        app, ["layer4", "--held-out", "40", "--controls", "1", "--out", str(out)], env={"COLUMNS": "200"}
    )
    assert done.exit_code == 0, done.output
    (row,) = json.loads(out.read_text())["models"]
    assert {area["score"] for area in row["areas"]} == set(faithfulness.SCORES)
    assert len(row["curves"]) == len(faithfulness.SCORES) * 3 * len(faithfulness.SHARES)
    assert row["n_forward_passes"] <= 2 + len(faithfulness.SCORES) * len(faithfulness.SHARES) * 3 * 2
    assert "layer4" in done.output
