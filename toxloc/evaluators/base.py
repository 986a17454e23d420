"""What judges a text: a name, a score from 0 to 1, and the threshold over which a text counts as toxic."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from ..errors import ToxlocError


class Evaluator(ABC):
    """Scores texts; sees nothing but texts.

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

    @abstractmethod
    def score(self, texts: Sequence[str]) -> dict[str, Float64[np.ndarray, " n"]]:
        """Score texts: for each label one number from 0 to 1 per text. An empty text scores 0."""


class FunctionEvaluator(Evaluator):
    """A user's own function, from texts to scores, as an evaluator.

    Example:
        >>> shouting = FunctionEvaluator("shouting", lambda texts: [float(t.isupper()) for t in texts])
        >>> shouting.score(["HEY", "hey"])["toxicity"]
        array([1., 0.])
    """

    def __init__(self, name: str, function: Callable[[Sequence[str]], Sequence[float]], threshold: float = 0.5):
        self.name, self.function, self.threshold = name, function, threshold
        self.card = {"kind": "a function given by the user"}

    def score(self, texts: Sequence[str]) -> dict[str, Float64[np.ndarray, " n"]]:
        """Call the function.

        Raises:
            ToxlocError: it did not return one number from 0 to 1 per text.
        """
        values = np.asarray(self.function(texts), dtype=np.float64)
        if values.shape != (len(texts),) or not ((values >= 0) & (values <= 1)).all():
            raise ToxlocError(f"Evaluator {self.name!r} must return one number from 0 to 1 for each of the "
                              f"{len(texts)} texts; it returned an array of shape {values.shape}.")
        return {self.label: values}
