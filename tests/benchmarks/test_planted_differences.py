import json

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from benchmarks import planted_differences
from benchmarks.planted_differences import LayerTest, layer_tests, markdown
from benchmarks.plants import planted_model
from toxloc import ContrastSet, load_contrast
from toxloc.localization.first_difference import first_differences


def test_every_measure_names_a_planted_layer():
    lm, pairs = planted_model("layer4"), load_contrast()
    usable = [difference.pair for difference in first_differences(lm, pairs).usable][:160]
    few = ContrastSet([pairs.toxic[i] for i in usable], [pairs.neutral[i] for i in usable], paired=True)
    tests = {test.measure: test for test in layer_tests(lm, few, 4)}
    assert list(tests) == list(planted_differences.MEASURES)
    for measure in ("counterfactual", "zero"):
        assert np.argmax(tests[measure].z) == np.argmax(tests[measure].values) == 4
        assert tests[measure].p_adjusted[4] < 0.05
    assert tests["patching"].values[4] > 0
    assert all(test.n_pairs == 160 for test in tests.values())


def test_the_table_by_hand():
    plant = [LayerTest("layer1", 1, m, 9, (0.1, 0.5), (2.0, 1.0), (0.2, 0.04)) for m in planted_differences.MEASURES]
    clean = [
        LayerTest("clean", None, m, 9, (0.1, 0.5), (-2.0, 1.0), (0.2, 0.0005)) for m in planted_differences.MEASURES
    ]
    weak = [LayerTest("layer0", 0, m, 9, (0.1, 0.5), (0.0, 1.0), (1.0, 0.2)) for m in planted_differences.MEASURES]
    table = markdown({"tests": [vars(test) for test in [*plant, *clean, *weak]]}).replace("\u00a0", " ").splitlines()
    assert table[2] == "| layer1 | +1.0 · +2.0 · .040 | +1.0 · +2.0 · .040 | +1.0 · +2.0 · .040 |"
    assert table[3].startswith("| clean | layer 1: +1.0 · -2.0 · <.001 |")
    assert table[4].startswith("| layer0 | +0.0 · +1.0 · 1.000 |")


@pytest.mark.exhaustive
def test_the_command_prints_and_saves(tmp_path):
    app = typer.Typer()
    app.command()(planted_differences.main)
    out = tmp_path / "planted-differences.json"
    done = CliRunner().invoke(app, ["layer4", "--out", str(out)], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert [test["measure"] for test in json.loads(out.read_text())["tests"]] == list(planted_differences.MEASURES)
    assert "layer4" in done.output
