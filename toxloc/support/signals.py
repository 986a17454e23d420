"""Let Ctrl-C wait for the end of code that must not be interrupted, such as applying an edit.

Python raises KeyboardInterrupt between any two instructions, also inside a `finally` block. While an atomic function
runs or an `Atomic` block is open, toxloc handles the signals: a signal that arrives inside an atomic function waits
until the function is over, and a signal that arrives anywhere else does what it would do without toxloc.
"""

import functools
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from types import FrameType, TracebackType
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM)
FILE = (lambda: None).__code__.co_filename  # as the frames of this module give it
PROTECTED = {
    "protected",
    "__enter__",
    "__exit__",
}  # names of the functions of this module that signals do not interrupt


class _Guard:
    """Handlers of the signals, in place of the earlier handlers while there are users.

    Users are atomic functions that run and `Atomic` blocks that are open, all on the main thread.
    """

    def __init__(self) -> None:
        self.users = 0
        self.waiting: list[int] = []
        self._earlier: dict[int, Callable[[int, FrameType | None], Any]] = {}

    def enter(self) -> None:
        """Add a user. The first user replaces the handlers; only signals with a Python handler can wait."""
        if self.users == 0:
            # Signals still wait only if another signal raised an exception while the last user left. That exception
            # has interrupted the program, and must not be followed by a second interrupt here.
            self.waiting = []
            for number in SIGNALS:
                handler = signal.getsignal(number)
                if callable(handler) and handler != self._handle:
                    self._earlier[number] = handler
                    signal.signal(number, self._handle)
        self.users += 1  # last: a signal before the handlers are replaced raises here, and nothing has begun

    def leave(self) -> None:
        """Remove a user. The last user restores the handlers, unless other code has replaced them meanwhile."""
        self.users -= 1
        if self.users == 0:
            for number, handler in self._earlier.items():
                if signal.getsignal(number) == self._handle:
                    signal.signal(number, handler)

    def deliver(self) -> None:
        """Call the earlier handlers of the signals that wait. The handler of Ctrl-C raises KeyboardInterrupt."""
        numbers, self.waiting = list(dict.fromkeys(self.waiting)), []  # pressing Ctrl-C twice is one interrupt
        with ExitStack() as stack:  # calls every handler, also if one raises
            for number in reversed(numbers):
                stack.callback(self._earlier[number], number, sys._getframe(1))

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if _depth(frame):
            self.waiting.append(number)
        else:
            self._earlier[number](number, frame)


_guard = _Guard()


def _depth(frame: FrameType | None) -> int:
    """Return the number of atomic functions on the stack of a frame."""
    depth = 0
    while frame is not None:
        depth += frame.f_code.co_name in PROTECTED and frame.f_code.co_filename == FILE
        frame = frame.f_back
    return depth


def _on_main_thread() -> bool:
    """Return whether this is the main thread; Python runs signal handlers in no other thread."""
    return threading.current_thread() is threading.main_thread()


def atomic(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function that signals must not interrupt; they are delivered when the outermost such function is over.

    Example:
        >>> @atomic
        ... def swap(a: list, b: list) -> None:
        ...     a[:], b[:] = b[:], a[:]
    """

    @functools.wraps(function)
    def protected(*args: P.args, **kwargs: P.kwargs) -> T:
        if not _on_main_thread():
            return function(*args, **kwargs)
        _guard.enter()
        try:
            return function(*args, **kwargs)
        finally:
            _guard.leave()
            if _depth(sys._getframe()) == 1:
                _guard.deliver()

    return protected


def deliver() -> None:
    """Deliver the signals that wait, if the caller is in the outermost atomic function.

    An atomic function calls this where it can still undo its work if the signal raises an exception.
    """
    if _on_main_thread() and _depth(sys._getframe()) == 1:
        _guard.deliver()


class Atomic:
    """Base class of context managers whose `enter` and `exit` are not interrupted by signals; the block itself can be.

    If a signal that arrives during `enter` raises an exception, `exit` is called and the block is not run.
    """

    def enter(self) -> Any:
        """Begin; the result is that of `with ... as`."""
        raise NotImplementedError

    def exit(self) -> None:
        """End, also after an exception in the block."""
        raise NotImplementedError

    def __enter__(self) -> Any:
        """Begin the block."""
        if not _on_main_thread():
            return self.enter()
        _guard.enter()  # until the end of the block, so that `__exit__` is protected from its first instruction
        try:
            result = self.enter()
            try:
                deliver()
            except BaseException:
                self.exit()
                raise
        except BaseException:
            _guard.leave()
            raise
        return result  # a signal that arrives from here to the block waits for the end of the block

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the block."""
        if not _on_main_thread():
            self.exit()
            return
        try:
            self.exit()
        finally:
            _guard.leave()
            if _depth(sys._getframe()) == 1:
                _guard.deliver()
