import errno
import threading

import filelock
import pytest

from tests.children import forks, hold, outcome_of, running
from toxloc import ToxlocError
from toxloc.support.locks import locked


def test_the_same_thread_can_lock_twice_and_the_file_is_removed_at_the_end(tmp_path):
    lock = tmp_path / ".lock"
    with locked(lock, "busy") as outer:
        with locked(lock, "busy") as inner:
            assert (outer, inner) == (True, False)
        assert lock.exists()
    assert not lock.exists()


def test_another_thread_is_refused(tmp_path):
    errors = []

    def other():
        with pytest.raises(ToxlocError) as stop, locked(tmp_path / ".lock", "Somebody writes."):
            pass
        errors.append(str(stop.value))

    with locked(tmp_path / ".lock", "busy"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert errors == ["Somebody writes."]


@forks
def test_another_process_is_refused_until_the_lock_is_released_or_its_process_is_killed(tmp_path):
    lock = tmp_path / ".lock"

    def take():
        with locked(lock, "busy") as is_new:
            return is_new

    with running(hold, locked(lock, "busy"), until=lock.exists), pytest.raises(ToxlocError, match="busy"):
        take()
    assert lock.exists()  # left by the process that was killed
    assert take()
    assert not lock.exists()
    with locked(lock, "busy"):
        assert outcome_of(take) == ["ToxlocError", "busy"]
    assert outcome_of(take) == ["returned", True]


def test_a_lock_can_be_waited_for(tmp_path):
    held, order = threading.Event(), []

    def first():
        with locked(tmp_path / ".lock", "busy"):
            held.set()
            event.wait()
            order.append("first")

    event, thread = threading.Event(), threading.Thread(target=first)
    thread.start()
    held.wait()
    timer = threading.Timer(0.3, event.set)  # longer than a process waits that does not want to wait
    timer.start()
    with locked(tmp_path / ".lock", "busy", wait=True):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError()])
def test_a_file_system_without_locks_is_used_without_a_lock(tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(filelock.FileLock, "acquire", fail)
    with locked(tmp_path / ".lock", "busy") as is_new:
        assert not is_new


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ToxlocError, match=r"/file cannot be written to"), locked(tmp_path / "file" / ".lock", "busy"):
        pass
