import os
import signal
import threading
import time

import pytest

from toxloc.support.signals import Atomic, atomic, deliver

pytestmark = pytest.mark.usefixtures("ctrl_c")


class Block(Atomic):
    """Records what happens, and interrupts itself where asked."""

    def __init__(self, log, at=()):
        self.log, self.at = log, at

    def step(self, name):
        self.log.append(name)
        if name in self.at:
            signal.raise_signal(signal.SIGINT)
            self.log.append(f"after {name}")

    def enter(self):
        self.step("enter")
        return self

    def exit(self):
        self.step("exit")


def handler():
    return signal.getsignal(signal.SIGINT)


def test_a_signal_waits_for_the_end_of_an_atomic_function():
    log, before = [], handler()

    @atomic
    def work():
        signal.raise_signal(signal.SIGINT)
        log.append("end")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert log == ["end"]
    assert handler() is before


def test_a_signal_waits_for_the_outermost_atomic_function():
    log = []

    @atomic
    def inner():
        signal.raise_signal(signal.SIGINT)
        deliver()  # not the outermost: it waits
        log.append("inner")

    @atomic
    def outer():
        inner()
        log.append("outer")

    with pytest.raises(KeyboardInterrupt):
        outer()
    assert log == ["inner", "outer"]


def test_an_atomic_function_can_undo_its_work():
    state = []

    @atomic
    def work():
        state.append("done")
        signal.raise_signal(signal.SIGINT)
        try:
            deliver()
        except BaseException:
            state.clear()
            raise

    with pytest.raises(KeyboardInterrupt):
        work()
    assert state == []


def test_errors_of_an_atomic_function_pass():
    @atomic
    def work():
        raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        work()
    assert work.__name__ == "work"


def test_a_block_interrupted_while_it_begins_is_ended_and_not_run():
    log = []
    with pytest.raises(KeyboardInterrupt), Block(log, at=("enter",)):
        log.append("body")
    assert log == ["enter", "after enter", "exit"]


def test_a_block_interrupted_in_its_body_is_ended():
    log, before = [], handler()
    with pytest.raises(KeyboardInterrupt), Block(log):
        assert handler() is not before
        signal.raise_signal(signal.SIGINT)
        log.append("not reached")
    assert log == ["enter", "exit"]
    assert handler() is before


def test_a_block_interrupted_twice_is_ended():
    log = []
    with pytest.raises(KeyboardInterrupt), Block(log, at=("exit",)):
        signal.raise_signal(signal.SIGINT)
    assert log == ["enter", "exit", "after exit"]


def test_a_handler_that_raises_nothing_lets_everything_go_on():
    log, seen = [], []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        with Block(log, at=("enter", "exit")):
            log.append("body")
        assert seen == [signal.SIGINT] * 2
        assert log == ["enter", "after enter", "body", "exit", "after exit"]
    finally:
        signal.signal(signal.SIGINT, before)


def test_handlers_that_the_block_replaces_are_kept():
    """Jupyter does so between cells."""
    before, new = handler(), lambda number, frame: None
    try:
        with Block([]):
            signal.signal(signal.SIGINT, new)
        assert handler() is new
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_error_while_a_block_begins_restores_the_handlers():
    class Fails(Atomic):
        def enter(self):
            raise ValueError("x")

    before = handler()
    with pytest.raises(ValueError, match="x"), Fails():
        pass
    assert handler() is before


def test_other_threads_change_no_handlers():
    before, log = handler(), []

    @atomic
    def work():
        log.append(handler() is before)

    def run():
        work()
        with Block(log):
            log.append(handler() is before)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert log == [True, "enter", True, "exit"]


def test_a_signal_from_outside_waits_too():
    log = []

    @atomic
    def work():
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            pass
        log.append("end")

    with pytest.raises(KeyboardInterrupt):
        work()
        time.sleep(1)
    assert log == ["end"]


def test_different_signals_are_all_delivered_and_equal_ones_once():
    seen = []
    before = {number: signal.signal(number, lambda n, _: seen.append(n)) for number in (signal.SIGINT, signal.SIGTERM)}

    @atomic
    def work():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
        assert seen == []

    try:
        work()
        assert seen == [signal.SIGINT, signal.SIGTERM]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
