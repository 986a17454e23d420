import re
import sys

import pytest
from typer.testing import CliRunner

from toxloc.cli import app, entry

FEW = ["--max-texts", "20", "--max-neutral", "20"]


def invoke(*arguments, columns=160):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": str(columns)})


def plain(text):
    """Return the text of a terminal without frames, colours and line breaks."""
    return re.sub(r"\s+", " ", re.sub(r"[│╭╮╰╯─]|\x1b\[[0-9;]*m", " ", text))


@pytest.fixture
def refused(monkeypatch, capsys):
    """Return a function that runs a command, checks that it exits with code 2, and returns its error message."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["toxloc", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            entry()
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert "Traceback" not in error
        return error

    return run


@pytest.fixture(scope="session")
def suppressed(tmp_path_factory):
    """Fit TRNE with `toxloc suppress`; return its folder and the printed text."""
    out = tmp_path_factory.mktemp("suppress") / "trne"
    result = invoke("suppress", "toxloc-tiny", "--out", out, "--budget", "0.05", "--kl-budget", "0.2", *FEW)
    assert result.exit_code == 0, result.output
    return out, plain(result.output)
