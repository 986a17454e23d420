"""A text file to which complete lines are appended, so that a killed process loses at most the line it was writing."""

from collections.abc import Callable
from contextlib import ExitStack
from os import SEEK_END, PathLike
from pathlib import Path
from types import TracebackType

from ..errors import ToxlocError
from .faults import fault_of
from .locks import locked


class AppendedFile:
    """A file of lines, open for appending. An incomplete last line is dropped when the file is opened.

    Until the file is closed, no other process can open it.

    Args:
        path: file to create or to continue.
        read: function that gets the complete lines of the file, before the file is changed. If it raises an error, the
            file is not changed.

    Raises:
        ToxlocError: the file cannot be written, or is open in another process.

    Example:
        >>> with AppendedFile("notes.txt", print) as file:    # doctest: +SKIP
        ...     file.add("a line")
        [b'an older line']
    """

    def __init__(self, path: str | PathLike[str], read: Callable[[list[bytes]], None]):
        self.path = Path(path)
        if not self.path.parent.is_dir():
            raise ToxlocError(f"{self.path} cannot be written to: its folder does not exist; give another file.")
        with ExitStack() as stack:
            busy = f"Another process is writing {self.path}; wait for it, or give another file."
            stack.enter_context(locked(self.path.with_name(f".{self.path.name}.lock"), busy))
            try:
                content = self.path.read_bytes() if self.path.exists() else b""
                complete = content[: content.rfind(b"\n") + 1]
                read(complete.split(b"\n")[:-1])
                # Without a buffer, so that closing the file cannot fail on what could not be written before.
                self._file = stack.enter_context(self.path.open("r+b" if content else "wb", buffering=0))
                self._file.truncate(len(complete))
                self._file.seek(0, SEEK_END)
            except OSError as error:
                raise self._unwritable(error) from error
            self._open = stack.pop_all()

    def add(self, line: str) -> None:
        """Append a line, given without its line break.

        Raises:
            ToxlocError: the file cannot be written.
        """
        rest = memoryview(line.encode() + b"\n")
        try:
            while rest:  # a disk that is almost full takes only a part
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> ToxlocError:
        reason = fault_of(error) or f"{error.strerror or error}; give another file"
        return ToxlocError(f"{self.path} cannot be written to ({reason}).")

    def __enter__(self) -> "AppendedFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()
