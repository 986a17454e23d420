"""Multiple choice: whether a model gives the right ending of a text a higher likelihood than the wrong endings."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool
from scipy import stats

from ...errors import ToxlocError
from ...models.loaded import LoadedModel
from ...support.arguments import whole_number
from ...support.intervals import CONFIDENCE
from ...texts.chat import Chat
from ...texts.chat_text import ChatText
from ...texts.tables import read_rows
from .perplexity import nll_of_endings


@dataclass(frozen=True)
class Choice:
    """A multiple-choice item.

    Attributes:
        beginning: beginning of the text.
        endings: possible endings of the text.
        right: index of the right ending.
    """

    beginning: str
    endings: list[str]
    right: int

    def as_chat(self, lm: LoadedModel, chat: Chat | None = None) -> "Choice":
        """Return the item as a conversation, in which the user asks to continue the beginning."""
        chat = chat or Chat()
        return replace(self, beginning=chat.asked(lm.tokenizer, [chat.opening.replace("{text}", self.beginning)]))

    def continued(self, ending: str) -> str:
        """Return what follows the beginning: the ending, after a space or at the start of an answer."""
        return ending if isinstance(self.beginning, ChatText) else f" {ending}"


@dataclass(frozen=True)
class Accuracy:
    """Share of multiple-choice items answered correctly.

    Attributes:
        value: the share.
        ci: 95% interval of the share (Clopper and Pearson 1934).
        n: number of items.
    """

    value: float
    ci: tuple[float, float]
    n: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return {"value": self.value, "ci": list(self.ci), "n": self.n}


def accuracy(lm: LoadedModel, choices: Sequence[Choice]) -> Accuracy:
    """Measure the accuracy on multiple-choice items of the model in its current state; see `answered_right`.

    Args:
        lm: the model.
        choices: the items.

    Raises:
        ToxlocError: there are no items, or an item does not fit into the context.

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
        limit: number of items to keep, counted from the first; None for all.

    Raises:
        ToxlocError: the source cannot be read or has a different layout.

    Example:
        >>> load_choices("hellaswag.jsonl", 400)     # doctest: +SKIP
    """
    if limit is not None:
        limit = whole_number(limit, "limit", at_least=1)
    rows = read_rows(source)[:limit]
    for i, row in enumerate(rows):
        endings, label = row.get("endings"), row.get("label")
        texts = [row.get("ctx"), *endings] if isinstance(endings, list) else []
        is_complete = len(texts) > 1 and all(isinstance(text, str) and text for text in texts)
        if not is_complete or not str(label).isdecimal() or int(str(label)) >= len(texts) - 1:
            raise ToxlocError(
                f"Row {i} of {source} is not a multiple-choice item in HellaSwag's layout; it needs ctx, endings, "
                "none of which is empty, and label, the index of the right ending."
            )
    return [Choice(row["ctx"], list(row["endings"]), int(row["label"])) for row in rows]


def answered_right(lm: LoadedModel, choices: Sequence[Choice]) -> Bool[np.ndarray, " n"]:
    """Return, for each item, whether the right ending has the highest log-likelihood per character.

    This is `acc_norm` of lm-evaluation-harness: the summed log-likelihood of an ending after its beginning is divided
    by the ending's number of characters, so that short endings have no advantage. The mean is the accuracy.

    Args:
        lm: the model in its current state.
        choices: the items.

    Raises:
        ToxlocError: there are no items, or a beginning and an ending do not fit into the context together.

    Example:
        >>> answered_right(lm, load_choices("hellaswag.jsonl")).mean()     # doctest: +SKIP
        0.43
    """
    if not choices:
        raise ToxlocError("There are no multiple-choice items to answer; give at least one.")
    beginnings = [item.beginning for item in choices for _ in item.endings]
    nll, _ = nll_of_endings(
        lm, beginnings, [item.continued(ending) for item in choices for ending in item.endings], "multiple choice"
    )
    score = -nll
    right, start = np.zeros(len(choices), dtype=bool), 0
    for k, item in enumerate(choices):
        characters = np.array([len(ending) for ending in item.endings])
        right[k] = int(np.argmax(score[start : start + len(characters)] / characters)) == item.right
        start += len(characters)
    return right
