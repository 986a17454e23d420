import json
from inspect import signature

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from benchmarks import trne
from tests.conftest import TEXTS
from toxloc import TRNE, ContrastSet, Meow2X, ToxlocError
from toxloc.evaluation.cost.perplexity import mean_nll


def command(*arguments):
    app = typer.Typer()
    app.command()(trne.main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_gains_are_differences_of_means_per_token(lm):
    pairs = ContrastSet(TEXTS[:2], TEXTS[2:5])
    before = mean_nll(lm, pairs.toxic, 128) - mean_nll(lm, pairs.neutral, 128)
    held = trne.HeldOut(lm, pairs)
    assert held.gain().mean == 0
    with Meow2X(layers=[3], scale=0.0).applied(lm):
        gain, after = held.gain(), mean_nll(lm, pairs.toxic, 128) - mean_nll(lm, pairs.neutral, 128)
    assert gain.mean == pytest.approx(after - before, abs=1e-5)


def test_the_interval_of_a_difference_is_paired_over_texts():
    none = np.zeros(2)
    reference = trne.Gain(np.array([1.0, 3.0]), none, np.array([2.0, 2.0]), np.ones(2))
    more = trne.Gain(reference.toxic + 2, none, reference.toxic_tokens, reference.neutral_tokens)
    zero = trne.Gain(none, none, reference.toxic_tokens, reference.neutral_tokens)
    assert reference.mean == 4 / 4
    # The toxic texts have 1 / 2 and 3 / 2 nats per token: a quarter of the draws contain only the first text, a quarter
    # only the second.
    assert reference.interval_over(zero, seed=0) == (0.5, 1.5)
    assert more.interval_over(reference, seed=0) == (1.0, 1.0)  # 4 more nats on 4 tokens, in every draw


def test_every_variant_is_a_setting_of_the_fit_and_other_than_the_defaults(lm):
    known = trne.variants(lm.n_layers)
    assert len({str(settings) for settings in known.values()}) == len(known)
    assert [layer for name in ("early", "middle", "late") for layer in known[f"{name} third alone"]["layers"]] == list(
        range(8)
    )
    for settings in known.values():
        assert not set(settings) - {*signature(TRNE.fit).parameters}


@pytest.mark.exhaustive
def test_the_command_compares_with_the_defaults_and_saves(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "trne.json"
    done = command(
        "--variant",
        "ridge 10",
        "--variant",
        "0% of the neutral text in C and S",
        "--max-texts",
        24,
        "--max-held-out",
        12,
        "--max-neutral",
        40,
        "--budget",
        0.05,
        "--out",
        out,
    )
    assert done.exit_code == 0, done.output
    usual, ridge, less = json.loads(out.read_text())["entries"]
    assert usual["variant"] == "defaults" and usual["over_defaults"] == 0 and usual["ci"] == [0, 0]
    assert ridge["described"]["ridge"] == 10
    assert usual["gain"] > 0
    for entry in (ridge, less):
        assert entry["over_defaults"] == pytest.approx(entry["gain"] - usual["gain"]) and entry["over_defaults"] != 0
        assert entry["variant"] in done.output


def test_an_unknown_variant_is_named():
    done = command("--variant", "more magic", "--max-texts", 8, "--max-neutral", 12)
    assert isinstance(done.exception, ToxlocError)
    assert "more magic; choose from defaults, ridge 0.03" in str(done.exception)
