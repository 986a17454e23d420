"""Base classes of evaluators, which score texts from 0 to 1 and call a text toxic from a threshold upwards."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float64

from ...errors import ToxlocError
from ...texts.drawing import check_texts

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
        languages: ISO 639-1 codes of the languages that the evaluator was trained for, or says that it covers; ("*",)
            if it claims practically all languages, None if they are unknown. The card in results contains them.
        weights: fingerprint of the loaded weights, by which results tell models of one name apart; None if the
            evaluator has none, or before `prepare`.
    """

    name: str
    label: str = "toxicity"
    threshold: float = 0.5
    card: dict[str, Any]
    languages: tuple[str, ...] | None = None
    weights: str | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the scores; by default only the deciding label."""
        return (self.label,)

    def about(self) -> dict[str, Any]:
        """Return the threshold, the card, the languages and the fingerprint of the weights, as results store them."""
        return {
            "threshold": self.threshold,
            "calibration": f"none; `toxloc calibrate {self.name}` chooses a threshold for your texts",
            **self.card,
            **({} if self.languages is None else {"languages": list(self.languages)}),
            **({} if self.weights is None else {"weights": self.weights}),
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
            ToxlocError: the evaluator failed, or did not return one number from 0 to 1 per text and label.
        """
        texts = check_texts(texts, "the texts", may_be_blank=True)
        cache = self._cache
        # Other threads may empty the cache meanwhile, so the scores of this call are in a separate dictionary.
        scores = {text: cache.get(text) for text in dict.fromkeys(texts) if text.strip()}
        if missing := [text for text, row in scores.items() if row is None]:
            new = dict(zip(missing, self._new_scores(missing), strict=True))
            scores |= new
            if len(cache) + len(new) > MAX_CACHED:
                cache.clear()
            cache.update(new)
        zeros = np.zeros(len(self.labels))
        rows = np.array([scores.get(text, zeros) for text in texts]).reshape(-1, len(self.labels))
        return dict(zip(self.labels, rows.T, strict=True))

    def _new_scores(self, texts: list[str]) -> Float64[np.ndarray, "n n_labels"]:
        try:
            by_label = self._score(texts)
            columns = {label: np.asarray(by_label[label], dtype=np.float64) for label in self.labels}
        except ToxlocError:
            raise
        except Exception as error:  # an evaluator is code of a user or of another library
            raise ToxlocError(
                f"Evaluator {self.name!r} failed on {len(texts)} texts ({type(error).__name__}: {error}); correct the "
                "evaluator, or leave it out."
            ) from error
        return np.stack([_checked(self.name, column, len(texts)) for column in columns.values()], 1)

    def forget(self) -> None:
        """Empty the cache of scores.

        The last digits of a score can depend on the texts that are scored at the same time, and the cache decides which
        texts these are. Scores after `forget` depend only on the texts of the call.
        """
        self._cache.clear()

    @cached_property
    def _cache(self) -> dict[str, np.ndarray]:
        return {}


def _checked(name: str, scores: np.ndarray, count: int) -> Float64[np.ndarray, " n"]:
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
