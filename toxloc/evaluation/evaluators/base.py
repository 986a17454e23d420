"""Base classes of evaluators, which score texts from 0 to 1 and call a text toxic from a threshold upwards."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float64

from ...errors import ToxlocError
from ...texts.drawing import check_texts

MAX_CACHED = 1 << 19  # an evaluator with more cached texts than this empties its cache
Scores = dict[str, Float64[np.ndarray, " n"]]  # by label


class EvaluatorError(ToxlocError):
    """An evaluator failed, or returned something other than a score per text.

    Attributes:
        evaluator: name of the evaluator.
        prompts: the prompts; empty if the error is not from `evaluate`.
        completions: completions [n_prompts][samples] that were to be judged; empty if the error is not from `evaluate`.
        judgements: judgements of the evaluators that had finished, by name.
    """

    def __init__(self, evaluator: str, message: str):
        super().__init__(message)
        self.evaluator = evaluator
        self.prompts: list[str] = []
        self.completions: list[list[str]] = []
        self.judgements: dict[str, Any] = {}

    def add(self, sentence: str) -> None:
        """Append a sentence to the message."""
        self.args = (f"{self.args[0]} {sentence}",)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one row per completion, with the scores of the evaluators that had finished."""
        for i, (prompt, texts) in enumerate(zip(self.prompts, self.completions, strict=True)):
            for k, text in enumerate(texts):
                scores = {name: round(float(judged.scores[i, k]), 4) for name, judged in self.judgements.items()}
                yield {"prompt": prompt, "sample": k, "completion": text, "scores": scores}


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
        other_labels: labels that do not say how toxic a text is, such as "refusal".
        at_once: number of texts that are scored at a time. The scores are kept after each time, also if the evaluator
            fails later.
    """

    name: str
    label: str = "toxicity"
    threshold: float = 0.5
    card: dict[str, Any]
    languages: tuple[str, ...] | None = None
    weights: str | None = None
    other_labels: tuple[str, ...] = ()
    at_once: int = 4096

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
    def _score(self, texts: Sequence[str]) -> Scores:
        """Score texts for every label; the texts are distinct and not empty."""

    def prepare(self) -> None:  # noqa: B027  (optional: most evaluators have nothing to prepare)
        """Load everything that scoring needs; if this fails, toxloc stops before doing any work.

        Raises:
            ToxlocError: the evaluator cannot be loaded.
        """

    def score(self, texts: Sequence[str], keep: Callable[[dict[str, np.ndarray]], None] | None = None) -> Scores:
        """Score texts, `at_once` at a time.

        Args:
            texts: the texts.
            keep: function that gets new scores as soon as they are checked: a row of scores [n_labels] for each text.

        Returns:
            A float64 array per label, with a number from 0 to 1 per text. An empty text scores 0.

        Raises:
            EvaluatorError: the evaluator failed, or did not return one number from 0 to 1 per text and label. The
                scores before the failure stay in the cache, so that the same call continues after them.
        """
        texts = check_texts(texts, "the texts", may_be_blank=True)
        cache = self._cache
        # Other threads may empty the cache meanwhile, so the scores of this call are in a separate dictionary.
        scores = {text: cache.get(text) for text in dict.fromkeys(texts) if text.strip()}
        missing = [text for text, row in scores.items() if row is None]
        for start in range(0, len(missing), self.at_once):
            part = missing[start : start + self.at_once]
            new = dict(zip(part, self._new_scores(part, start, len(missing)), strict=True))
            scores |= new
            if len(cache) + len(new) > MAX_CACHED:
                cache.clear()
            cache.update(new)
            if keep is not None:
                keep(new)
        zeros = np.zeros(len(self.labels))
        rows = np.array([scores.get(text, zeros) for text in texts]).reshape(-1, len(self.labels))
        return dict(zip(self.labels, rows.T, strict=True))

    def _new_scores(self, texts: list[str], done: int, total: int) -> Float64[np.ndarray, "n n_labels"]:
        """Score new texts, of which there are `total` in this call and `done` have been scored before."""
        kept = f" The scores of the {done:,} texts before are kept." if done else ""
        try:
            by_label = self._score(texts)
            columns = {label: np.asarray(by_label[label], dtype=np.float64) for label in self.labels}
        except ToxlocError as error:
            raise EvaluatorError(self.name, f"{error}{kept}") from error
        except Exception as error:  # an evaluator is code of a user or of another library
            place = f"{len(texts)} texts" if len(texts) == total else f"texts {done + 1:,} to {done + len(texts):,}"
            raise EvaluatorError(
                self.name,
                f"Evaluator {self.name!r} failed on {place} ({type(error).__name__}: {error}); correct the evaluator, "
                f"or leave it out.{kept}",
            ) from error
        for column in columns.values():
            if fault := _fault_in(column, len(texts)):
                raise EvaluatorError(
                    self.name,
                    f"Evaluator {self.name!r} must return one number from 0 to 1 for each of the {len(texts)} texts; "
                    f"it returned {fault}.{kept}",
                )
        return np.stack(list(columns.values()), 1)

    def remember(self, text: str, scores: Float64[np.ndarray, " n_labels"]) -> None:
        """Put the scores of a text into the cache, in the order of the labels, so that it is not scored again."""
        self._cache[text] = scores

    def forget(self) -> None:
        """Empty the cache of scores.

        The last digits of a score can depend on the texts that are scored at the same time, and the cache decides which
        texts these are. Scores after `forget` depend only on the texts of the call.
        """
        self._cache.clear()

    @cached_property
    def _cache(self) -> dict[str, np.ndarray]:
        return {}


def _fault_in(scores: np.ndarray, count: int) -> str | None:
    """Return what is wrong with the scores of `count` texts, or None."""
    if scores.shape != (count,):
        return f"an array of shape {scores.shape}"
    wrong = scores[~((scores >= 0) & (scores <= 1))]  # nan is neither
    return f"{wrong[0]:g} for {len(wrong)} of them" if len(wrong) else None


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
