import json

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from benchmarks import depth
from benchmarks.depth import DepthTest, depth_tests, markdown
from benchmarks.plants import planted_model
from toxloc import load_contrast


def test_the_largest_step_is_that_of_the_planted_layer():
    tests = {test.baseline: test for test in depth_tests(planted_model("layer4"), load_contrast(), 4)}
    assert set(tests) == set(depth.TITLES)
    for baseline in ("neutral", "none"):
        assert np.argmax(tests[baseline].z) == np.argmax(tests[baseline].values) == 4
        assert tests[baseline].p_adjusted[4] < 0.05
        np.testing.assert_allclose(np.diff(tests[baseline].difference), tests[baseline].values, atol=1e-6)
    assert all(test.n_pairs == 362 for test in tests.values())


def test_the_table_by_hand():
    d, steps = (0.0, 0.1, 0.6), ((0.1, 0.5), (2.0, 1.0), (0.2, 0.04))
    bands = (-1.0, -0.9, -0.4), (1.0, 1.1, 1.6), (0.9, 0.9, 0.9)
    plant = [DepthTest("layer1", 1, baseline, 9, None, d, *bands, *steps) for baseline in depth.TITLES]
    clean = [DepthTest("clean", None, baseline, 9, None, d, *bands, *steps) for baseline in depth.TITLES]
    table = markdown({"tests": [vars(test) for test in [*plant, *clean]]}).replace("\u00a0", " ").splitlines()
    assert table[2] == f"| layer1 | +0.60 [-0.40, +1.60] | {' | '.join(['+1.0 · +2.0 · .040'] * 3)} |"
    assert table[3].endswith(" | layer 0: +2.0 · +1.0 · .200 |")


@pytest.mark.exhaustive
def test_the_command_prints_and_saves(tmp_path):
    app = typer.Typer()
    app.command()(depth.main)
    out = tmp_path / "depth.json"
    done = CliRunner().invoke(app, ["layer4", "--out", str(out)], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    result = json.loads(out.read_text())
    assert [test["baseline"] for test in result["tests"]] == list(depth.TITLES)
    assert result["command"] == "python -m benchmarks.depth layer4 --seed 0"
    assert "layer4" in done.output
