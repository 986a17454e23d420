"""Completions on disk as they come, so that sampling that was killed goes on where it was."""

import json
from collections.abc import Iterable
from os import SEEK_END, PathLike
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import ToxlocError


class Journal:
    """A JSON Lines file: what is sampled in the first line, then a completion a line.

    A line that was being written when the process was killed is dropped.

    Args:
        path: file to write, or to go on with.
        settings: everything that decides the completions: JSON values only.

    Attributes:
        known: the completions that the file held, by number of the prompt and of the sample.

    Raises:
        ToxlocError: the file belongs to other settings, is no journal, or cannot be written.

    Example:
        >>> with Journal("completions.partial.jsonl", {"seed": 0}) as journal:    # doctest: +SKIP
        ...     journal.add([(0, 0, " a bit cold.")])
    """

    def __init__(self, path: str | PathLike[str], settings: dict[str, Any]):
        self.path = Path(path)
        try:
            held = self.path.read_bytes() if self.path.exists() else b""
            lines = held[: held.rfind(b"\n") + 1].splitlines(keepends=True)
            self.known = self._read(lines, settings)
            self._file = self.path.open("r+b" if held else "wb")
        except OSError as error:
            raise ToxlocError(f"{self.path} cannot be written to ({error}); give another file.") from error
        self._file.truncate(sum(map(len, lines)))
        self._file.seek(0, SEEK_END)
        if not lines:
            self._write(json.dumps(settings))

    def _read(self, lines: list[bytes], settings: dict[str, Any]) -> dict[tuple[int, int], str]:
        if not lines:
            return {}
        try:
            head, *completions = map(json.loads, lines)
            known = {(int(prompt), int(sample)): str(text) for prompt, sample, text in completions}
            different = [name for name in {**head, **settings} if head.get(name) != settings.get(name)]
        except (ValueError, TypeError, AttributeError):
            raise ToxlocError(f"{self.path} is not a file of completions that toxloc wrote; give another.") from None
        if different:
            name = different[0]
            raise ToxlocError(f"{self.path} holds completions made with {name}={head.get(name)!r}, not "
                              f"{settings.get(name)!r}; remove it, or give the same settings to go on.")
        return known

    def add(self, completions: Iterable[tuple[int, int, str]]) -> None:
        """Write completions: number of the prompt, of the sample, text."""
        for one in completions:
            self._write(json.dumps(one))

    def _write(self, line: str) -> None:
        self._file.write(line.encode() + b"\n")
        self._file.flush()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._file.close()
