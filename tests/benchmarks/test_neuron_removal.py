import json

import pytest
import typer
from typer.testing import CliRunner

from benchmarks import neuron_removal
from benchmarks.neuron_removal import markdown


def test_the_table_by_hand():
    rankings = list(neuron_removal.RANKINGS)
    results = [
        {"model": "neurons1", "precision": dict(zip(rankings, (0.5, 0.25, 1.0, 0.0), strict=True))},
        {"model": "neurons3", "precision": dict(zip(rankings, (1.0, 0.75, 0.5, 0.5), strict=True))},
    ]
    assert markdown({"removed": results}).splitlines()[2:] == [
        "| neurons1 | 0.50 | 0.25 | 1.00 | 0.00 |",
        "| neurons3 | 1.00 | 0.75 | 0.50 | 0.50 |",
        "| mean | 0.75 | 0.50 | 0.75 | 0.25 |",
    ]


@pytest.mark.exhaustive
def test_the_command_removes_every_neuron_and_saves(tmp_path):
    app = typer.Typer()
    app.command()(neuron_removal.main)
    out = tmp_path / "neuron-removal.json"
    done = CliRunner().invoke(app, ["neurons5", "--pairs", "4", "--out", str(out)], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    (removed,) = json.loads(out.read_text())["removed"]
    assert len(removed["toxic_rise"]) == len(removed["neutral_rise"]) == 1024
    assert removed["precision"]["toxic"] > 3 * 64 / 1024  # three times what chance gives
