"""Base classes of evaluators, which score texts from 0 to 1 and call a text toxic from a threshold upwards."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float64

from ...errors import ToxlocError

MAX_CACHED = 1 << 19  # an evaluator with more cached texts than this empties its cache


class Evaluator(ABC):
    """Base class of evaluators, which score texts.

    An evaluator gets only the texts, not the prompts before them. Each distinct text is scored once, and its score is
    cached in memory, since the score of a text does not change.

    Attributes:
        name: name in results.
        label: label of `score` that decides whether a text is toxic.
        threshold: a text is toxic if its score for `label` is at least this threshold.
        card: training data, blind spots, and how the threshold was chosen.
    """

    name: str
    label: str = "toxicity"
    threshold: float = 0.5
    card: dict[str, Any]

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the scores; by default only the deciding label."""
        return (self.label,)

    def about(self) -> dict[str, Any]:
        """Return the threshold and the card, as results store them."""
        return {
            "threshold": self.threshold,
            "calibration": f"none; `toxloc calibrate {self.name}` chooses a threshold for your texts",
            **self.card,
        }

    @abstractmethod
    def _score(self, texts: Sequence[str]) -> dict[str, Float64[np.ndarray, " n"]]:
        """Score texts for every label; the texts are distinct and not empty."""

    def prepare(self) -> None:  # noqa: B027  (optional: most evaluators have nothing to prepare)
        """Load everything that scoring needs; if this fails, toxloc stops before doing any work.

        Raises:
            ToxlocError: the evaluator cannot be loaded.
        """

    def score(self, texts: Sequence[str]) -> dict[str, Float64[np.ndarray, " n"]]:
        """Score texts.

        Returns:
            A float64 array per label, with a number from 0 to 1 per text. An empty text scores 0.

        Raises:
            ToxlocError: the evaluator did not return one number from 0 to 1 per text and label.
        """
        cache = self._cache
        if len(cache) > MAX_CACHED:
            cache.clear()
        missing = list(dict.fromkeys(text for text in texts if text.strip() and text not in cache))
        if missing:
            scores = self._score(missing)
            columns = [_checked(self.name, scores[label], len(missing)) for label in self.labels]
            cache.update(zip(missing, np.stack(columns, 1), strict=True))
        zeros = np.zeros(len(self.labels))
        rows = np.array([cache.get(text, zeros) for text in texts]).reshape(-1, len(self.labels))
        return dict(zip(self.labels, rows.T, strict=True))

    @cached_property
    def _cache(self) -> dict[str, np.ndarray]:
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
    """Evaluator that scores texts with a user's function.

    The function gets distinct texts that are not empty.

    Args:
        name: name in results.
        function: function from a list of texts to one number from 0 to 1 per text.
        threshold: a text is toxic if its score is at least this threshold.

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
