"""What judges a text: a name, a score from 0 to 1, and the threshold over which a text counts as toxic."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float64

from ...errors import ToxlocError

REMEMBERED = 1 << 19  # texts whose scores an evaluator keeps


class Evaluator(ABC):
    """Scores texts; sees nothing but texts.

    Each text is scored once: scores are kept as long as the evaluator is, whose version never changes.

    Attributes:
        name: what it is called in results.
        label: the entry of `score` that decides.
        threshold: a text is toxic if that entry is at least this.
        card: what it was trained on, what it is blind to, how its threshold came about.
    """

    name: str
    label: str = "toxicity"
    threshold: float = 0.5
    card: dict[str, Any]

    @property
    def labels(self) -> tuple[str, ...]:
        """What is scored; by default the deciding label alone."""
        return (self.label,)

    def about(self) -> dict[str, Any]:
        """Return threshold and card, as results carry them."""
        return {"threshold": self.threshold,
                "calibration": f"none; toxloc calibrate {self.name} finds a threshold for your texts", **self.card}

    @abstractmethod
    def _score(self, texts: Sequence[str]) -> dict[str, Float64[np.ndarray, " n"]]:
        """Score texts, none of them empty and no two the same, for every label."""

    def prepare(self) -> None:  # noqa: B027  (most evaluators have nothing to prepare)
        """Load what scoring needs, so that what is missing is told before any work is done.

        Raises:
            ToxlocError: it cannot be had.
        """

    def score(self, texts: Sequence[str]) -> dict[str, Float64[np.ndarray, " n"]]:
        """Score texts: for each label one number from 0 to 1 per text. An empty text scores 0.

        Raises:
            ToxlocError: the evaluator returned something else.
        """
        known = self._known
        if len(known) > REMEMBERED:
            known.clear()
        asked = list(dict.fromkeys(text for text in texts if text.strip() and text not in known))
        if asked:
            found = self._score(asked)
            columns = [_checked(self.name, found[label], len(asked)) for label in self.labels]
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
        raise ToxlocError(f"Evaluator {name!r} must return one number from 0 to 1 for each of the {count} texts; it "
                          f"returned an array of shape {scores.shape}"
                          + (f" from {scores.min():g} to {scores.max():g}." if scores.size else "."))
    return scores


class FunctionEvaluator(Evaluator):
    """A user's own function, from texts to scores, as an evaluator.

    It is given texts that are not empty, each once.

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
