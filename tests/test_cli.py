import os
import re
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

import toxloc
from toxloc.cli import app, entry

SMALL = ["--samples", "1", "--max-prompts", "4", "--max-texts", "30", "--max-neutral", "30", "--knockouts", "0"]


def plain(text):
    return re.sub(r"\s+", " ", re.sub(r"[│╭╮╰╯─]|\x1b\[[0-9;]*m", " ", text))


def test_help_names_every_option_and_the_warning():
    text = plain(CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "200"}).output)
    for word in ("--model", "--contrast", "--prompts", "--samples", "--seed", "--device", "--out", "offensive",
                 "three minutes"):
        assert word in text


def test_help_loads_no_heavy_library():
    code = "import sys, toxloc.cli; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'plotly')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_version():
    assert toxloc.__version__ in CliRunner().invoke(app, ["--version"]).output


def test_a_run_ends_with_a_table_and_the_report(tmp_path):
    result = CliRunner().invoke(app, ["run", "--out", str(tmp_path / "r"), *SMALL], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    assert "trne" in result.output
    assert str(tmp_path / "r" / "report.html") in result.output
    assert (tmp_path / "r" / "results.json").is_file()


@pytest.mark.parametrize(("arguments", "words"), [
    (["--model", "./nowhere"], "There is no model folder at './nowhere'"),
    (["--prompts", "none.csv"], "There is no file none.csv"),
    (["--samples", "0"], "samples=0"),
    (["--device", "cuda:42"], "torch sees"),
])
def test_a_users_error_is_one_sentence_without_a_traceback(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.setattr(sys, "argv", ["toxloc", "run", "--out", str(tmp_path / "r"), *arguments])
    with pytest.raises(SystemExit) as stop:
        entry()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_nothing(tmp_path):
    process = subprocess.Popen([sys.executable, "-m", "toxloc", "run", "--out", str(tmp_path / "r")],
                               stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                               env=os.environ | {"OMP_NUM_THREADS": "2"})
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".r.*.partial")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list(tmp_path.glob(".r.*.partial"))
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []
