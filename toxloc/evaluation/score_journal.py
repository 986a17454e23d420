"""A file of scores, written while completions are judged, so that a judge that fails loses no score."""

import hashlib
import json
from os import PathLike, fspath
from pathlib import Path
from types import TracebackType

import numpy as np

from ..errors import ToxlocError
from ..support.appended import AppendedFile
from ..support.files import parse_json
from .evaluators.base import Evaluator, Scores


class ScoreJournal:
    """A JSON Lines file of scores; a line holds an evaluator's identity, the SHA-256 of a text, and its scores.

    An evaluator is identified by its name, its labels and the fingerprint of its weights. Scores of an evaluator that
    has no fingerprint, such as a function, are written but not read back: it may have changed since.

    Args:
        path: file to create or to continue.

    Raises:
        ToxlocError: the file is not such a file, cannot be written, or is open in another process.

    Example:
        >>> with ScoreJournal("completions.partial.jsonl.scores") as journal:    # doctest: +SKIP
        ...     journal.score(evaluator, ["Good morning."])
    """

    def __init__(self, path: str | PathLike[str]):
        self.path = Path(path)
        self._known: dict[str, dict[str, list[float]]] = {}
        self._file = AppendedFile(path, self._read)

    def _read(self, lines: list[bytes]) -> None:
        try:
            for line in lines:
                evaluator, text, scores = parse_json(line.decode())
                if not all(type(score) in (int, float) and 0 <= score <= 1 for score in scores):
                    raise ValueError
                self._known.setdefault(evaluator, {})[text] = scores
        except (ValueError, TypeError):
            raise ToxlocError(
                f"{self.path} is not a file of scores from toxloc, or is damaged; remove it to judge anew."
            ) from None

    def score(self, evaluator: Evaluator, texts: list[str]) -> Scores:
        """Score texts as `Evaluator.score` does; take known scores from the file, and write new scores to it."""
        identity = _identity(evaluator)
        known = {} if evaluator.weights is None else self._known.get(identity, {})
        for text in dict.fromkeys(texts):
            scores = known.get(_digest(text))
            if scores is not None and len(scores) == len(evaluator.labels):
                evaluator.remember(text, np.array(scores))

        def keep(new: dict[str, np.ndarray]) -> None:
            for text, row in new.items():
                self._file.add(json.dumps([identity, _digest(text), row.tolist()]))

        return evaluator.score(texts, keep)

    def __enter__(self) -> "ScoreJournal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)


def scores_beside(journal: str | PathLike[str]) -> Path:
    """Return the file of scores that belongs to a journal of completions.

    Example:
        >>> scores_beside("out.partial.jsonl").name
        'out.partial.jsonl.scores'
    """
    return Path(f"{fspath(journal)}.scores")


def _identity(evaluator: Evaluator) -> str:
    return " ".join([evaluator.name, *evaluator.labels, str(evaluator.weights)])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
