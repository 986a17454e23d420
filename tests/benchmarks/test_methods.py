import json

import pytest
import typer
from typer.testing import CliRunner

from benchmarks import methods
from tests.conftest import TEXTS, random_model
from toxloc import Budget, ContrastSet, NeutralText, ToxlocError


def command(*arguments):
    app = typer.Typer()
    app.command()(methods.main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


SMALL = ("--budget", "0.05", "--max-prompts", 8, "--samples", 1, "--max-texts", 24, "--max-neutral", 40)


@pytest.mark.slow
def test_the_command_compares_methods_at_one_price_saves_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    out = tmp_path / "methods.json"
    done = command("--method", "TRNE", "--method", "steering", *SMALL, "--out", out)
    assert done.exit_code == 0, done.output
    saved = json.loads(out.read_text())
    baseline, *edited = saved["entries"]
    assert baseline["method"] == "baseline"
    assert baseline["fluency"]["perplexity_ratio"] == pytest.approx(1)
    assert [(entry["method"], entry["budget"]) for entry in edited] == [("TRNE", 0.05), ("steering", 0.05)]
    rates = {entry["method"]: entry["toxicity"]["any"]["rate"] for entry in edited}
    best = min(rates, key=rates.get)
    for entry in edited:
        assert 1 < entry["config"]["tuned_perplexity_ratio"] <= 1.05
        assert entry["over_best"]["best"] == best
        assert entry["over_best"]["difference"] == pytest.approx(rates[entry["method"]] - rates[best])
        change = entry["everyday"]["rate"] - baseline["everyday"]["rate"]
        assert entry["everyday"]["difference"] == pytest.approx(change)
        assert entry["method"] in done.output
    for entry in saved["entries"]:
        assert entry["verdicts"].count("1") == pytest.approx(8 * entry["toxicity"]["any"]["rate"])

    items = tmp_path / "items.jsonl"
    items.write_text(json.dumps({"ctx": "He took his coat and", "endings": ["went out.", "of under zx."], "label": 0}))
    more = command("--method", "steering", "--method", "Meow2X", *SMALL, "--out", out, "--choices", items)
    assert more.exit_code == 0, more.output
    assert "TRNE" in more.output  # entries saved before are shown again
    again = {entry["method"]: entry for entry in json.loads(out.read_text())["entries"]}
    assert list(again) == ["baseline", "TRNE", "steering", "Meow2X"]
    assert again["steering"]["verdicts"] == edited[1]["verdicts"]  # not sampled twice
    assert again["steering"]["choices"]["accuracy"] == 1.0 == again["baseline"]["choices"]["accuracy"]
    assert "choices" not in again["TRNE"]

    head, _, *rows = methods.markdown(json.loads(out.read_text())).splitlines()
    assert "toxic by any at +5%" in head
    assert [row.split(" | ")[0] for row in rows] == [
        "| " + name
        for name, _ in sorted(
            ((name, entry["toxicity"]["any"]["rate"]) for name, entry in again.items()), key=lambda pair: pair[1]
        )
    ]
    assert f"{again['TRNE']['fluency']['perplexity_ratio'] - 1:+.1%} · " in "".join(rows)

    other = command("--method", "steering", *SMALL, "--seed", 1, "--out", out)
    assert isinstance(other.exception, ToxlocError)
    assert "seed=0, not 1" in str(other.exception)


@pytest.mark.exhaustive
def test_budgets_in_kl(tmp_path):
    done = command("--method", "TRNE", *SMALL[2:], "--unit", "kl", "--budget", "0.02", "--out", tmp_path / "out.json")
    assert done.exit_code == 0, done.output
    _, trne = json.loads((tmp_path / "out.json").read_text())["entries"]
    assert 0.015 < trne["config"]["tuned_kl"] <= 0.02
    wrong = command("--method", "TRNE", "--unit", "bits")
    assert "'bits' of a budget; choose one of perplexity, kl" in str(wrong.exception)


def test_an_unknown_method_is_named():
    done = command("--method", "prayer", "--max-texts", 8, "--max-neutral", 12)
    assert isinstance(done.exception, ToxlocError)
    assert "prayer; choose from TRNE, " in str(done.exception)


def test_every_method_can_be_fitted():
    """The weights are small enough that every method has a strength within the budget."""
    lm = random_model("gpt2", scale=4.0)
    known = methods.Methods(
        lm, ContrastSet(TEXTS[:2] * 2, TEXTS[2:4] * 2), NeutralText(TEXTS[:2], TEXTS[3:], TEXTS[2:3])
    )
    for name in known.fits:
        assert known.fit(name, Budget(perplexity=0.5)).record["tuned_perplexity_ratio"] <= 1.5, name
    assert len(known.fits) == 15
    assert known.fit(methods.BASELINE, None) is None
    assert known.fit(methods.AS_PUBLISHED, None).settings["strength"] == 1
