import json

import numpy as np
import pytest
import typer
from scipy.stats import spearmanr
from typer.testing import CliRunner

from benchmarks import patching_cost
from benchmarks.patching_cost import agreement, agreement_markdown, cost_markdown, rank_correlation, usable_pairs


def run(*arguments):
    app = typer.Typer()
    app.command()(patching_cost.main)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return done.output


def test_pairs_are_repeated_from_the_start(lm):
    pairs = usable_pairs(lm, 364)
    assert pairs.toxic[362:] == pairs.toxic[:2]
    assert pairs.neutral[362:] == pairs.neutral[:2]


def test_the_rank_correlation_with_ties():
    a, b = np.array([[3.0, 1, 2, 2], [1, 2, 3, 4]]), np.array([[1.0, 1, 5, 2], [4, 3, 2, 1]])
    expected = [spearmanr(x, y)[0] for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(rank_correlation(a, b), expected)


def test_the_interval_holds_the_agreement():
    rng = np.random.default_rng(0)
    exact = rng.normal(size=40)
    value, (low, high) = agreement({"effect": exact}, {"effect": exact + rng.normal(size=40)})
    assert low < value < high
    assert agreement({"effect": exact}, {"effect": -exact})[0] == pytest.approx(-1)


def test_the_command_saves_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(patching_cost, "BASELINES", ("zero",))
    monkeypatch.setattr(patching_cost, "ROUNDS", 1)
    out = tmp_path / "patching-cost.json"
    output = run("--pairs", "4", "--sizes", "", "--out", str(out))
    saved = json.loads(out.read_text())
    known = saved["models"]["toxloc-tiny"]
    assert known["cost"]["of_plain"] > 0
    assert {method: len(done["effect"]) for method, done in known["effects"]["zero"].items()} == dict.fromkeys(
        patching_cost.METHODS, 16
    )
    assert "| toxloc-tiny, 16, 4 | `zero` |" in output
    known["effects"]["zero"]["exact"]["seconds"] = 1234.5
    del known["effects"]["zero"]["integrated"]
    out.write_text(json.dumps(saved))
    assert "1234.5" in run("--pairs", "4", "--sizes", "", "--out", str(out))  # it was not measured again


def test_the_tables_by_hand():
    methods = {method: {"effect": [1.0, 2, 3], "seconds": 2.0} for method in patching_cost.METHODS}
    result = {
        "model": "a model",
        "sites": 3,
        "pairs": 9,
        "memory": {"100": 5_000_000, "3000": None},
        "cost": {"of_plain": 2.125},
        "effects": {"mean": methods},
    }
    rows = agreement_markdown({"models": {"a": result}}).replace("\u00a0", " ").splitlines()
    assert rows[2].startswith("| a, 3, 9 | `mean` | 1.00 [1.00, 1.00] | 1.00 [")
    assert rows[2].endswith("| 2.0 · 2.0 · 2.0 |")
    assert cost_markdown({"models": {"a": result}}).splitlines()[2] == "| a model | 2.12 | 5 | – |"
