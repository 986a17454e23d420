import io

import pytest
from rich.console import Console

from toxloc.support.progress import note, shown, step, track


def test_silent_unless_shown(capsys):
    with step("working"):
        assert list(track([1, 2], "counting")) == [1, 2]
    note("[b]heed[/b]")
    assert capsys.readouterr() == ("", "")


def test_a_note_stays():
    screen = io.StringIO()
    with shown(Console(file=screen, force_terminal=True, width=30)), step("Loading"):
        note("Heed that the model [m] has a template.")
    assert "Heed that the model [m] has a template." in screen.getvalue()


def test_steps_stay_and_bars_go():
    screen = io.StringIO()
    with shown(Console(file=screen, force_terminal=True, width=100)), step("Working hard"):
        assert list(track(range(3), "counting")) == [0, 1, 2]
    final = screen.getvalue().rsplit("\x1b[2K", 1)[-1]
    assert "Working hard" in final
    assert "counting" not in final


@pytest.mark.parametrize("terminal", [True, False])
def test_brackets_of_a_name_are_kept(terminal):
    screen = io.StringIO()
    with shown(Console(file=screen, force_terminal=terminal, width=100)), step("Loading [red]model[/b]"):
        list(track([1], "reading [x]"))
    assert "Loading [red]model[/b]" in screen.getvalue()
