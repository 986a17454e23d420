"""Texts that wait for judges: while a batch is judged, new texts gather for the next batch."""

from collections.abc import Sequence
from threading import Lock

from ..evaluation.evaluators.base import Evaluator
from ..evaluation.judgement import Judgement
from ..evaluation.judging import judge


class WaitingTexts:
    """Judges texts that arrive one at a time from several threads, in batches.

    Args:
        judges: the evaluators; only one thread at a time uses them.

    Example:
        >>> waiting = WaitingTexts(get_judges("profanity-check"))
        >>> waiting.add("Good morning")
        >>> bool(waiting.judged("Good morning")["any"].toxic[0, 0])
        False
    """

    def __init__(self, judges: Sequence[Evaluator]) -> None:
        self.judges = judges
        self._texts: list[str] = []
        self._lock = Lock()

    def add(self, text: str) -> None:
        """Add a text to the next batch."""
        self._texts.append(text)

    def judged(self, text: str) -> dict[str, Judgement]:
        """Judge all waiting texts at once, and return the judgements [1, 1] of one text, by name.

        Raises:
            ToxlocError: an evaluator failed.
        """
        with self._lock:
            batch = [self._texts.pop() for _ in range(len(self._texts))]
            if batch:
                judge([[waiting] for waiting in batch], self.judges)  # the evaluators cache the scores
            return judge([[text]], self.judges)
