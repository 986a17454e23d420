import pickle

from toxloc.errors import ToxlocError, shortened


def test_a_long_message_is_shortened_in_its_middle():
    message = f"There is no model {'x' * 5000}; check the name."
    shown = str(ToxlocError(message))
    assert shown == shortened(message)
    assert len(shown) == 1000
    assert shown.startswith("There is no model xxx") and shown.endswith("xxx; check the name.")
    assert shown.replace("x", "") == "There is no model …; check the name."


def test_a_message_of_1000_characters_is_unchanged():
    assert str(ToxlocError("x" * 1000)) == "x" * 1000
    assert str(ToxlocError("x" * 1001)) == "x" * 500 + "…" + "x" * 499


def test_an_error_from_another_process_keeps_its_message():
    error = pickle.loads(pickle.dumps(ToxlocError("x" * 3000)))
    assert isinstance(error, ToxlocError)
    assert error.args == ("x" * 3000,)
