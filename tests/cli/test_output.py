import pytest
from rich.table import Table

from tests.hostile import HOSTILE
from toxloc.cli.output import alarm, terminal
from toxloc.support.control_characters import visible


def table():
    shown = Table(HOSTILE, title=HOSTILE)
    shown.add_row(HOSTILE)
    return shown


@pytest.mark.parametrize("what", [HOSTILE, table(), alarm("Error: ", HOSTILE)], ids=["text", "table", "error"])
@pytest.mark.parametrize("stderr", [False, True], ids=["stdout", "stderr"])
def test_control_characters_do_not_reach_the_terminal(capsys, what, stderr):
    terminal(stderr).print(what)
    printed = capsys.readouterr()[stderr]
    assert visible(printed, keep="\n") == printed
    assert "\\x1b" in printed and "\\ud800" in printed


def test_brackets_are_printed_literally_and_text_in_one_piece(capsys):
    terminal().print("[b]naïve[/b] :smile: 1\n2", soft_wrap=True)
    assert capsys.readouterr().out == "[b]naïve[/b] :smile: 1\\n2\n"


def test_an_error_is_one_line_of_bounded_length(capsys):
    terminal(stderr=True).print(alarm("failed: ", f"{'x' * 5000}: no\nluck"), soft_wrap=True)
    shown = capsys.readouterr().err
    assert shown == f"failed: {'x' * 500}…{'x' * 490}: no\\nluck\n"
