"""What all commands share: help, the version, and errors."""

import json
import subprocess
import sys

import pytest

import toxloc

from .conftest import invoke, plain

PROGRAM = """
import contextlib, io, json, sys
from toxloc.cli import entry
for arguments in json.loads(sys.argv[1]):
    sys.argv, code, error = ["toxloc", *arguments], 0, io.StringIO()
    with contextlib.redirect_stderr(error):
        try:
            entry()
        except SystemExit as stop:
            code = stop.code
    heavy = [name for name in ("torch", "transformers", "datasets") if name in sys.modules]
    print(json.dumps([code, error.getvalue(), heavy]))
"""
EVALUATE, SUPPRESS = ["evaluate", "toxloc-tiny", "--out", "out"], ["suppress", "toxloc-tiny", "--out", "out"]
WRONG = [
    (["run", "--samples", "0"], "samples=0: it must be greater than or equal to 1."),
    (["run", "--budget", "5"], "budget=5.0: it must be less than 1."),
    (["run", "--method", "meow"], "Unknown method 'meow'; choose one of trne, meow2x"),
    (["run", "--evaluator", "nobody"], "There is no evaluator 'nobody'; there are toxloc-guard"),
    (["run", "--dtype", "float8"], "dtype='float8': it must be 'float32', 'bfloat16' or 'float16'."),
    (["run", "--max-neutral", "3"], "max_neutral=3: it must be greater than or equal to 12."),
    (["run", "--out", "taken"], "taken is not empty"),
    ([*SUPPRESS, "--method", "meow"], "Unknown method 'meow'; choose one of trne"),
    ([*SUPPRESS, "--set", "ridgee=1"], "trne has no setting 'ridgee'; it takes budget, seed"),
    ([*SUPPRESS, "--set", "ridge=large"], "trne: ridge"),
    ([*SUPPRESS, "--set", "ridge"], "--set ridge: write NAME=VALUE"),
    ([*SUPPRESS, "--budget", "-1"], "not -1.0"),
    ([*SUPPRESS, "--kl-budget", "0"], "KL in nats that is allowed, such as 0.01, not 0.0"),
    ([*SUPPRESS, "--max-texts", "7"], "max_texts=7: it must be greater than or equal to 8."),
    (["suppress", "toxloc-tiny", "--out", "taken"], "taken is not empty"),
    ([*EVALUATE, "--protocol", "rtp"], "There is no protocol 'rtp'; there are RealToxicityPrompts"),
    ([*EVALUATE, "--protocol", "ProFS", "--samples", "5"], "ProFS fixes samples=1"),
    ([*EVALUATE, "--top-p", "2"], "top_p=2.0: it must be less than or equal to 1."),
    ([*EVALUATE, "--evaluator", "toxloc-guard@7"], "the threshold 7 is out of range"),
    (["evaluate", "toxloc-tiny", "--out", "taken"], "taken is not empty"),
    (["sweep", "wrong.yaml"], "wrong.yaml: methods.0: trne has no setting 'budgett'"),
    (["sweep", "none.yaml"], "There is no grid file none.yaml"),
]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What each wrong command says, in one process, in a folder with a grid and a folder that holds something."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "taken").mkdir()
    (folder / "taken" / "mine.txt").write_text("precious")
    (folder / "wrong.yaml").write_text(
        json.dumps(
            {
                "models": ["toxloc-tiny"],
                "benchmarks": {"one": {"prompts": "builtin"}},
                "methods": [{"method": "trne", "settings": {"budgett": 0.01}}],
            }
        )
    )
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([arguments for arguments, _ in WRONG])],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return folder, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("i", range(len(WRONG)), ids=lambda i: " ".join(WRONG[i][0]))
def test_wrong_settings_are_refused_before_torch_is_imported(told, i):
    code, error, heavy = told[1][i]
    assert (code, heavy) == (2, [])
    assert error.startswith("Error: ")
    assert WRONG[i][1] in error
    assert error.count("\n") == 1


def test_refused_commands_write_nothing(told):
    assert sorted(str(path.relative_to(told[0])) for path in told[0].rglob("*")) == [
        "taken",
        "taken/mine.txt",
        "wrong.yaml",
    ]


def test_help_loads_no_heavy_library():
    code = "import sys, toxloc.cli; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'plotly')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_lists_the_commands():
    text = plain(invoke("--help").output)
    for command in ("run", "suppress", "methods", "evaluate", "compare", "calibrate", "export", "sweep", "models"):
        assert f" {command} " in text


def test_version():
    assert invoke("--version").output == f"toxloc {toxloc.__version__}\n"
