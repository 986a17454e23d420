"""Help, version and errors of all commands."""

import json
import re
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
# Each wrong command, and a pattern for its error message: the wrong value and, where there is one, the fix.
WRONG = [
    (["run", "--samples", "0"], r"samples=0: .*\b1\."),
    (["run", "--budget", "5"], r"budget=5\.0: .*\b1\."),
    (["run", "--method", "meow"], "'meow'.* trne, meow2x"),
    (["run", "--evaluator", "nobody"], "'nobody'.* toxloc-guard"),
    (["run", "--dtype", "float8"], "dtype='float8': .*'float32', 'bfloat16' or 'float16'"),
    (["run", "--max-neutral", "3"], r"max_neutral=3: .*\b12\."),
    (["run", "--out", "taken"], "taken is not empty"),
    ([*SUPPRESS, "--method", "meow"], "'meow'.* trne"),
    ([*SUPPRESS, "--set", "ridgee=1"], "trne .*'ridgee'.* budget, seed"),
    ([*SUPPRESS, "--set", "ridge=large"], "trne: ridge"),
    ([*SUPPRESS, "--set", "ridge"], "--set ridge: .*NAME=VALUE"),
    ([*SUPPRESS, "--budget", "-1"], r"-1\.0"),
    ([*SUPPRESS, "--kl-budget", "0"], r"KL .*0\.01.* 0\.0\b"),
    ([*SUPPRESS, "--max-texts", "7"], r"max_texts=7: .*\b8\."),
    (["suppress", "toxloc-tiny", "--out", "taken"], "taken is not empty"),
    ([*EVALUATE, "--protocol", "rtp"], "'rtp'.* RealToxicityPrompts"),
    ([*EVALUATE, "--protocol", "ProFS", "--samples", "5"], "ProFS .*samples=1"),
    ([*EVALUATE, "--top-p", "2"], r"top_p=2\.0: .*\b1\."),
    ([*EVALUATE, "--evaluator", "toxloc-guard@7"], "toxloc-guard@7.* 1"),
    (["evaluate", "toxloc-tiny", "--out", "taken"], "taken is not empty"),
    (["sweep", "wrong.yaml"], r"wrong\.yaml: methods\.0: trne .*'budgett'"),
    (["sweep", "none.yaml"], r"none\.yaml"),
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Run every wrong command in one process, in a folder with a grid and a folder that is not empty.

    Return the folder and, for each command, its exit code, its error message and the heavy libraries imported so far.
    """
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
def test_wrong_settings_are_refused_before_torch_is_imported(outcomes, i):
    code, error, heavy = outcomes[1][i]
    assert (code, heavy) == (2, [])
    assert error.startswith("Error: ")
    assert re.search(WRONG[i][1], error), error
    assert error.count("\n") == 1


def test_refused_commands_write_nothing(outcomes):
    folder = outcomes[0]
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == [
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


def test_an_error_shows_the_control_characters_of_a_name(refused, tmp_path):
    taken = tmp_path / "\x1b[31mred\u202e\n"
    taken.mkdir()
    (taken / "mine.txt").write_text("precious")
    error = refused("run", "--out", taken)
    assert error.startswith("Error: /") and error.count("\n") == 1
    assert "\\x1b[31mred\\u202e\\n is not empty; choose another folder" in error


def test_an_error_with_a_long_name_is_shortened_in_the_middle(refused):
    error = refused("run", "--method", "x" * 5000)
    assert len(error) == len("Error: \n") + 1000
    assert "xxx…" in error and "trne" in error
