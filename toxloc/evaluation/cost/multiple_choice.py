"""Multiple choice: does a model still give the right ending of several the highest likelihood?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool
from scipy import stats

from ...errors import ToxlocError
from ...models.loaded import LoadedModel
from ...support.intervals import CONFIDENCE
from ...texts.tables import read_rows
from .perplexity import nll_of_endings


@dataclass(frozen=True)
class Choice:
    """A text's beginning, several endings, and the place of the right one."""

    beginning: str
    endings: list[str]
    right: int


@dataclass(frozen=True)
class Accuracy:
    """Share of multiple-choice items answered right.

    Attributes:
        value: the share.
        ci: its 95% interval (Clopper and Pearson).
        n: items.
    """

    value: float
    ci: tuple[float, float]
    n: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return {"value": self.value, "ci": list(self.ci), "n": self.n}


def accuracy(lm: LoadedModel, choices: Sequence[Choice]) -> Accuracy:
    """Answer items with the model as it is now; see `answered_right`.

    Example:
        >>> accuracy(lm, load_choices("hellaswag.jsonl", 400)).value     # doctest: +SKIP
        0.38
    """
    right = answered_right(lm, choices)
    low, high = stats.binomtest(int(right.sum()), len(right)).proportion_ci(CONFIDENCE)
    return Accuracy(float(right.mean()), (float(low), float(high)), len(right))


def load_choices(source: str, limit: int | None = None) -> list[Choice]:
    """Load multiple-choice items in HellaSwag's layout: the columns ctx, endings and label.

    Args:
        source: a JSON Lines or Parquet file, or a hub dataset's id.
        limit: the first so many; None for all.

    Raises:
        ToxlocError: nothing readable there, or another layout.

    Example:
        >>> load_choices("hellaswag.jsonl", 400)     # doctest: +SKIP
    """
    rows = read_rows(source)[:limit]
    for i, row in enumerate(rows):
        endings, label = row.get("endings"), row.get("label")
        if not (row.get("ctx") and endings and str(label).isdigit() and int(str(label)) < len(endings)):
            raise ToxlocError(f"Row {i} of {source} is no multiple-choice item; HellaSwag's layout is needed: ctx, "
                              "endings, and label, the place of the right ending.")
    return [Choice(row["ctx"], list(row["endings"]), int(row["label"])) for row in rows]


def answered_right(lm: LoadedModel, choices: Sequence[Choice]) -> Bool[np.ndarray, " n"]:
    """Whether the right ending is the most likely one, per character, after each beginning.

    That is `acc_norm` of lm-evaluation-harness: the ending's summed log-likelihood over its length, which keeps short
    endings from winning. Its mean is the accuracy.

    Raises:
        ToxlocError: no items, or an ending that leaves no room in the context for its beginning.

    Example:
        >>> answered_right(lm, load_choices("hellaswag.jsonl")).mean()     # doctest: +SKIP
        0.43
    """
    if not choices:
        raise ToxlocError("There are no multiple-choice items to answer.")
    beginnings = [one.beginning for one in choices for _ in one.endings]
    nll, _ = nll_of_endings(lm, beginnings, [f" {ending}" for one in choices for ending in one.endings],
                            "multiple choice")
    score = -nll
    right, start = np.zeros(len(choices), dtype=bool), 0
    for k, one in enumerate(choices):
        characters = np.array([len(ending) for ending in one.endings])
        right[k] = int(np.argmax(score[start : start + len(characters)] / characters)) == one.right
        start += len(characters)
    return right
