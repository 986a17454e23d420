import json

import pytest
import typer
from typer.testing import CliRunner

from benchmarks import causal
from toxloc.localization.score_table import SCORES


@pytest.mark.exhaustive
def test_the_command_prints_and_saves(tmp_path):
    app = typer.Typer()
    app.command()(causal.main)
    out = tmp_path / "causal.json"
    done = CliRunner().invoke(
        app, ["--pairs", "40", "--texts", "8", "--neurons", "6", "--curve-score", "attribution", "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    saved = json.loads(out.read_text())
    assert {(c["score"], c["parts"]) for c in saved["proof"]["correlations"]} == {
        (score, parts) for score in set(SCORES) - {"routing"} for parts in ("layers", "neurons")
    }
    (curve,) = saved["curves"]
    assert curve["counts"] == [8, 16, 32, 64, 128, 256]
    assert "Removing neurons by attribution" in done.output
    assert f"{saved['proof']['layers'][3]['effect']:+.3f}" in done.output
