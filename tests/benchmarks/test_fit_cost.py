"""Test what the script counts; times are not tested."""

import json

import pytest
from typer import Typer
from typer.testing import CliRunner

from benchmarks import fit_cost
from toxloc import Budget, load_contrast, load_neutral
from toxloc.models.batching import encode


@pytest.fixture
def command(monkeypatch, tiny):
    monkeypatch.setattr(fit_cost.Setting, "load", lambda _: tiny)
    monkeypatch.setattr(fit_cost.gc, "collect", lambda: 0)  # slow in a process that has loaded all tests
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        app = Typer()
        app.command()(fit_cost.main)
        options = ["--max-texts", 8, "--max-neutral", 12, "--budget", 0.2, "--repeats", 1, *arguments]
        return CliRunner().invoke(app, list(map(str, options)))

    return run


def test_every_token_that_passes_through_the_model_is_counted(command, tiny, tmp_path):
    out = tmp_path / "fit-cost.json"
    done = command("--method", "steering", "--method", "TRNE", "--out", out)
    assert done.exit_code == 0, done.output
    steering, trne = json.loads(out.read_text())["entries"]
    pairs, neutral = load_contrast().limited(8, 0), load_neutral(limit=12, seed=0)

    def tokens(texts, length=128):
        return sum(map(len, encode(tiny, texts, length)))

    contrast, fit = tokens(pairs.toxic) + tokens(pairs.neutral), tokens(neutral.fit)
    tune, check = tokens(neutral.tune, 256), tokens(neutral.check, 256)
    assert (steering["tokens"], trne["tokens"]) == (contrast + tune + check, contrast + fit + tune + check)
    for entry, statistics, backward in ((steering, contrast, 0), (trne, contrast + fit, contrast + fit)):
        expected = {"statistics": statistics, "tuning": (1 + entry["evaluations"]) * tune, "check": 2 * check}
        assert entry["forward"] == pytest.approx({name: n / entry["tokens"] for name, n in expected.items()})
        assert entry["backward"] == pytest.approx(backward / entry["tokens"])
        assert 0 < entry["spent"] <= 1
        assert sum(entry["shares"].values()) <= 1


def test_an_earlier_result_is_shown_beside(command, tmp_path):
    before, out = tmp_path / "before.json", tmp_path / "after.json"
    assert command("--method", "steering", "--out", before).exit_code == 0
    saved = json.loads(before.read_text())
    saved["entries"][0]["evaluations"] = 12
    before.write_text(json.dumps(saved))
    done = command("--method", "steering", "--method", "AurA", "--before", before, "--out", out)
    assert done.exit_code == 0, done.output
    result = json.loads(out.read_text())
    steering, aura = fit_cost.rows(result)[1]
    assert steering[1] == f"12 → {result['entries'][0]['evaluations']}"
    assert aura[1] == str(result["entries"][1]["evaluations"])
    assert steering[1] in fit_cost.markdown(result)
    assert steering[1] in done.stdout


def test_every_fit_is_a_method_with_valid_settings():
    for method, options in fit_cost.FITS.values():
        assert fit_cost.method_settings(method, budget=Budget(kl=0.1), **options).outright is None


def test_an_unknown_method_is_refused(command):
    assert "There is no method TRME" in str(command("--method", "TRME").exception)
