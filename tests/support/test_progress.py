import io

import pytest
from rich.console import Console

from tests.hostile import HOSTILE
from toxloc.support.control_characters import visible
from toxloc.support.progress import note, shown, step, track


def test_nothing_is_printed_outside_shown(capsys):
    with step("working"):
        assert list(track([1, 2], "counting")) == [1, 2]
    note("[b]note[/b]")
    assert capsys.readouterr() == ("", "")


def test_a_note_stays_on_the_screen():
    screen = io.StringIO()
    with shown(Console(file=screen, force_terminal=True, width=30)), step("Loading"):
        note("The model [m] has a chat template.")
    assert "The model [m] has a chat template." in screen.getvalue()


def test_steps_stay_and_bars_disappear():
    screen = io.StringIO()
    with shown(Console(file=screen, force_terminal=True, width=100)), step("Working hard"):
        assert list(track(range(3), "counting")) == [0, 1, 2]
    final = screen.getvalue().rsplit("\x1b[2K", 1)[-1]
    assert "Working hard" in final
    assert "counting" not in final


@pytest.mark.parametrize("terminal", [True, False])
def test_brackets_in_names_are_not_markup(terminal):
    screen = io.StringIO()
    with shown(Console(file=screen, force_terminal=terminal, width=100)), step("Loading [red]model[/b]"):
        list(track([1], "reading [x]"))
    assert "Loading [red]model[/b]" in screen.getvalue()


def test_control_characters_of_names_are_escapes():
    screen = io.StringIO()
    with shown(Console(file=screen, width=2000)), step(HOSTILE):
        note(HOSTILE)
        list(track([1], HOSTILE))
    printed = screen.getvalue()
    assert visible(printed, keep="\n") == printed
    assert printed.count("\\x1b[31m") == 3
