"""Evaluators: a name, a score from 0 to 1 for each text, and the threshold from which on a text is toxic."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float64

from ...errors import ToxlocError

REMEMBERED = 1 << 19  # texts whose scores an evaluator keeps


class Evaluator(ABC):
    """Base class: scores texts.

    An evaluator gets only the texts, not the prompts before them. Each different text is scored once, and its score is
    kept in memory, since the score of a text does not change.

    Attributes:
        name: name in results.
        label: the label of `score` that decides whether a text is toxic.
        threshold: a text is toxic if its score for that label is at least this.
        card: its training data, its blind spots, and how its threshold was chosen.
    """

    name: str
    label: str = "toxicity"
    threshold: float = 0.5
    card: dict[str, Any]

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the scores; by default the deciding label alone."""
        return (self.label,)

    def about(self) -> dict[str, Any]:
        """Return threshold and card, as they are written into results."""
        return {
            "threshold": self.threshold,
            "calibration": f"none; toxloc calibrate {self.name} finds a threshold for your texts",
            **self.card,
        }

    @abstractmethod
    def _score(self, texts: Sequence[str]) -> dict[str, Float64[np.ndarray, " n"]]:
        """Score texts for every label; no text is empty, and no two are the same."""

    def prepare(self) -> None:  # noqa: B027  (most evaluators have nothing to prepare)
        """Load what scoring needs; if an evaluator cannot be loaded, toxloc stops before doing any work.

        Raises:
            ToxlocError: it cannot be loaded.
        """

    def score(self, texts: Sequence[str]) -> dict[str, Float64[np.ndarray, " n"]]:
        """Score texts.

        Returns:
            For each label a float64 array with a number from 0 to 1 for each text. An empty text scores 0.

        Raises:
            ToxlocError: the evaluator returned anything else.
        """
        known = self._known
        if len(known) > REMEMBERED:
            known.clear()
        asked = list(dict.fromkeys(text for text in texts if text.strip() and text not in known))
        if asked:
            scores = self._score(asked)
            columns = [_checked(self.name, scores[label], len(asked)) for label in self.labels]
            known.update(zip(asked, np.stack(columns, 1), strict=True))
        nothing = np.zeros(len(self.labels))
        rows = np.array([known.get(text, nothing) for text in texts]).reshape(-1, len(self.labels))
        return dict(zip(self.labels, rows.T, strict=True))

    @cached_property
    def _known(self) -> dict[str, np.ndarray]:
        return {}


def _checked(name: str, values: Any, count: int) -> Float64[np.ndarray, " n"]:
    scores = np.asarray(values, dtype=np.float64)
    if scores.shape != (count,) or not ((scores >= 0) & (scores <= 1)).all():
        raise ToxlocError(
            f"Evaluator {name!r} must return one number from 0 to 1 for each of the {count} texts; it "
            f"returned an array of shape {scores.shape}"
            + (f" from {scores.min():g} to {scores.max():g}." if scores.size else ".")
        )
    return scores


class FunctionEvaluator(Evaluator):
    """A user's function, from texts to scores, as an evaluator.

    The function gets texts that are not empty and all different.

    Args:
        name: name in results.
        function: takes a list of texts and returns a number from 0 to 1 for each of them.
        threshold: a text is toxic if its score is at least this.

    Example:
        >>> shouting = FunctionEvaluator("shouting", lambda texts: [float(t.isupper()) for t in texts])
        >>> shouting.score(["HEY", "hey"])["toxicity"]
        array([1., 0.])
    """

    def __init__(self, name: str, function: Callable[[Sequence[str]], Sequence[float]], threshold: float = 0.5):
        self.name, self.function, self.threshold = name, function, threshold
        self.card = {"kind": "a function given by the user"}

    def _score(self, texts: Sequence[str]) -> dict[str, Any]:
        return {self.label: self.function(texts)}
