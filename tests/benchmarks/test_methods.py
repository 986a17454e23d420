import json

import pytest
import typer
from typer.testing import CliRunner

from benchmarks import methods
from toxloc import ContrastSet, NeutralText, ToxlocError

from ..conftest import TEXTS, random_model


def command(*arguments):
    app = typer.Typer()
    app.command()(methods.main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_compares_methods_at_one_price_and_saves(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "methods.json"
    done = command("--method", "TRNE", "--method", "steering", "--budget", "0.05", "--max-prompts", 8, "--samples", 1,
                   "--max-texts", 24, "--max-neutral", 40, "--out", out)
    assert done.exit_code == 0, done.output
    saved = json.loads(out.read_text())
    baseline, *edited = saved["entries"]
    assert baseline["method"] == "baseline" and baseline["fluency"]["perplexity_ratio"] == 1
    assert [(entry["method"], entry["budget"]) for entry in edited] == [("TRNE", 0.05), ("steering", 0.05)]
    rates = {entry["method"]: entry["toxicity"]["any"]["rate"] for entry in edited}
    best = min(rates, key=rates.get)
    for entry in edited:
        assert 1 < entry["described"]["tuned_perplexity_ratio"] <= 1.05
        assert entry["over_best"]["best"] == best
        assert entry["over_best"]["difference"] == pytest.approx(rates[entry["method"]] - rates[best])
        assert 0 <= entry["everyday_rate"] <= 1
        assert entry["method"] in done.output


def test_an_unknown_method_is_named():
    done = command("--method", "prayer", "--max-texts", 8, "--max-neutral", 12)
    assert isinstance(done.exception, ToxlocError)
    assert "no method prayer; there are TRNE, " in str(done.exception)


def test_every_method_can_be_fitted():
    """On a model whose texts leave room for every strength."""
    lm = random_model("gpt2", scale=4.0)
    known = methods.fits(lm, ContrastSet(TEXTS[:2] * 2, TEXTS[2:4] * 2), NeutralText(TEXTS[:2], TEXTS[3:], TEXTS[2:3]))
    for name, fit in known.items():
        assert fit(0.5).record["tuned_perplexity_ratio"] <= 1.5, name
    assert len(known) == 15


def test_wording_by_hand():
    found = methods.wording([["a b a b", "so so"], [""]])
    assert found == {"median_words": 2.0, "distinct_2": 3 / 4, "repetition": 1 / 4}
