"""A file of completions, written while they are sampled, so that a killed run can continue."""

import json
import math
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import ToxlocError
from ..support.appended import AppendedFile
from ..support.files import parse_json


class Journal:
    """A JSON Lines file: the settings in the first line, then one completion per line.

    If the process is killed while it writes a line, the incomplete line is dropped when the journal is opened again.
    Until the journal is closed, no other process can open it.

    Args:
        path: file to create or to continue.
        settings: values on which the completions depend, as JSON values. "n_prompts" and "samples" bound the indices.

    Attributes:
        known: the completions that the file held when it was opened, by (prompt, sample) index.

    Raises:
        ToxlocError: the file has other settings, is not a journal, cannot be written, or is open in another process.

    Example:
        >>> with Journal("completions.partial.jsonl", {"seed": 0}) as journal:    # doctest: +SKIP
        ...     journal.add([(0, 0, " a bit cold.")])
    """

    def __init__(self, path: str | PathLike[str], settings: dict[str, Any]):
        self.path = Path(path)
        is_new = True

        def read(lines: list[bytes]) -> None:
            nonlocal is_new
            is_new, self.known = not lines, self._read(lines, settings)

        self._file = AppendedFile(path, read)
        if is_new:
            self._file.add(json.dumps(settings))

    def _read(self, lines: list[bytes], settings: dict[str, Any]) -> dict[tuple[int, int], str]:
        if not lines:
            return {}
        try:
            head, *completions = (parse_json(line.decode()) for line in lines)
            known = {(prompt, sample): text for prompt, sample, text in completions}
            different = [name for name in {**head, **settings} if head.get(name) != settings.get(name)]
        except (ValueError, TypeError, AttributeError):
            raise ToxlocError(f"{self.path} is not a file of completions from toxloc; give another file.") from None
        if different:
            name = different[0]
            raise ToxlocError(
                f"{self.path} holds completions made with {name}={head.get(name)!r}, not "
                f"{settings.get(name)!r}; remove it, or give the same settings to continue."
            )
        counts = settings.get("n_prompts", math.inf), settings.get("samples", math.inf)
        for key, text in known.items():
            is_place = all(type(i) is int and 0 <= i < count for i, count in zip(key, counts, strict=True))
            if not (is_place and isinstance(text, str)):
                raise ToxlocError(
                    f"{self.path} is damaged: it holds a completion for (prompt, sample) = {key!r:.40}, which does not "
                    "exist, or which is not text. Remove the file to start anew."
                )
        return known

    def add(self, completions: Iterable[tuple[int, int, str]]) -> None:
        """Write completions, each as (index of the prompt, index of the sample, text)."""
        for completion in completions:
            self._file.add(json.dumps(completion))

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)
