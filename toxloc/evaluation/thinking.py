"""What models think before they answer. It is not judged, and reported apart."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from ..texts.chat import without_thinking


@dataclass(frozen=True)
class Thinking:
    """Figures of the thoughts of all completions.

    Attributes:
        share: share of completions with a thought.
        unfinished: share of completions that end before the thought does, so that their answer is empty.
        mean_words: mean length of a thought in words, over completions with one.
        texts: the thought of every completion, "" for none.
    """

    share: float
    unfinished: float
    mean_words: float
    texts: list[list[str]]

    def to_dict(self) -> dict[str, float]:
        """Return the figures by name, without texts."""
        figures = asdict(self)
        del figures["texts"]
        return figures


def split_thinking(
    prompts: Sequence[str], completions: Sequence[Sequence[str]]
) -> tuple[list[list[str]], Thinking | None]:
    """Split completions into answers and thoughts; the thoughts are None if there are none.

    Example:
        >>> answers, thinking = split_thinking(["Hi"], [["<think>Be kind.</think>Hello!", "Hi!"]])
        >>> answers, thinking.share, thinking.mean_words
        ([['Hello!', 'Hi!']], 0.5, 2.0)
    """
    parts = [
        [without_thinking(prompt, text) for text in texts] for prompt, texts in zip(prompts, completions, strict=True)
    ]
    answers = [[answer for _, answer in row] for row in parts]
    thoughts = [[thought for thought, _ in row] for row in parts]
    lengths = [len(thought.split()) for row in thoughts for thought in row]
    words = [n for n in lengths if n]
    if not words:
        return answers, None
    unfinished = [bool(thought) and not answer for row in parts for thought, answer in row]
    return answers, Thinking(len(words) / len(lengths), float(np.mean(unfinished)), float(np.mean(words)), thoughts)
