import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
import typer
from typer.testing import CliRunner

import toxloc
from toxloc.cli.from_settings import takes
from toxloc.runs.settings import RunSettings

from .conftest import invoke, plain

SMALL = ["--samples", "1", "--max-prompts", "4", "--max-texts", "30", "--max-neutral", "30", "--knockouts", "0"]


def test_help_names_every_option_and_the_warning():
    text = plain(invoke("run", "--help", columns=250).output)
    for word in (
        "--model",
        "--contrast",
        "--prompts",
        "--samples",
        "--seed",
        "--device",
        "--out",
        "offensive",
        "three minutes",
        "0.01 is 1%. [default: 0.01]",
        "[default: meow2x, trne]",
    ):
        assert word in text


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Run AurA and TRNE; return the folder, the printed text and the calls of `collect_contrast`."""
    real, calls = toxloc.localization.statistics.collect_contrast, []

    def counted(*args, **options):
        calls.append(options)
        return real(*args, **options)

    out = tmp_path_factory.mktemp("run") / "r"
    with pytest.MonkeyPatch.context() as patched:
        for module in ("interventions.evidence", "localization.localize", "localization.statistics"):
            patched.setattr(f"toxloc.{module}.collect_contrast", counted)
        result = invoke("run", "--out", out, "--method", "aura", "--method", "trne", "--max-new-tokens", "8", *SMALL)
    assert result.exit_code == 0, result.output
    return out, result.output, calls


@pytest.mark.slow
def test_a_run_ends_with_a_table_and_the_report(ran):
    out, printed, _ = ran
    kept = toxloc.RunResult.load(out)
    assert kept.methods == ["baseline", "aura", "trne"]
    for method in kept.methods:
        row = next(line for line in printed.splitlines() if line.startswith(f"│ {method} "))
        assert f" {kept.rate(method):.1%} [" in row
    assert kept.results["headline"]["text"] in printed
    assert str(kept.report) in printed.replace("\n", "")
    assert kept.report.is_file()


@pytest.mark.slow
def test_the_chosen_methods_are_judged_under_their_titles_and_colours(ran):
    out, _, _ = ran
    runs = json.loads((out / "results.json").read_text())["runs"]
    assert [(entry["method"], entry["title"]) for entry in runs] == [
        ("baseline", "baseline"),
        ("aura", "AurA"),
        ("trne", "TRNE"),
    ]
    assert [entry["colour"] for entry in runs] == [None, toxloc.AurA.colour, toxloc.TRNE.colour]
    assert toxloc.TRNE.colour is not None
    assert runs[2]["config"]["budget"] == {"perplexity": 0.01, "kl": None}
    assert [toxloc.load_intervention(out / kind).kind for kind in ("aura", "trne")] == ["aura", "trne"]


@pytest.mark.slow
def test_scores_and_methods_share_one_pass_over_the_contrast_texts(ran):
    calls = ran[2]
    assert len(calls) == 1
    assert calls[0]["gradients"] and calls[0]["curvature"]


@pytest.mark.parametrize(
    "settings",
    [
        RunSettings(),
        RunSettings(model="my model", methods=("aura", "trne"), evaluators=("profanity-check@0.7",)),
        RunSettings(budget=0.02, knockouts=0, check="it's.txt", dtype="bfloat16", seed=7),
    ],
)
def test_the_command_of_a_run_gives_its_settings_again(settings):
    got = []
    made = typer.Typer()
    made.command()(takes(RunSettings)(lambda settings: got.append(settings)))
    result = CliRunner().invoke(made, shlex.split(settings.command())[2:])
    assert result.exit_code == 0, result.output
    assert got == [settings]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "./nowhere"], "There is no model folder at './nowhere'"),
        (["--prompts", "none.csv"], "There is no file none.csv"),
        (["--device", "cuda:42"], "torch sees"),
        (["--prompts", "[/b]:smile:.csv"], "There is no file [/b]:smile:.csv"),
        (["--model", "./[red]model"], "There is no model folder at './[red]model'"),
    ],
)
def test_a_users_error_is_one_sentence_without_a_traceback(tmp_path, refused, arguments, words):
    assert words in refused("run", "--out", tmp_path / "r", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_nothing(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "toxloc", "run", "--out", str(tmp_path / "r")],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "2"},
        # The tests themselves may run where Ctrl-C is ignored, for example in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".r.*.partial")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list(tmp_path.glob(".r.*.partial"))
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.rstrip().endswith("Stopped. Nothing was written.")
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []
