"""Random draws of texts, and the check that no text is empty."""

import random
from collections.abc import Sequence

from ..errors import ToxlocError


def shuffled(count: int, seed: int) -> list[int]:
    """Return the numbers 0 to `count` - 1 in a random order that depends only on `count` and `seed`.

    Example:
        >>> sorted(shuffled(4, seed=0))
        [0, 1, 2, 3]
    """
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


def check_texts(texts: Sequence[str], where: str) -> None:
    """Check that every text is a string with more than whitespace in it.

    Args:
        texts: the texts to check.
        where: name of the collection of texts in the error message.

    Raises:
        ToxlocError: a text is empty or not a string; the message gives its position.
    """
    for i, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise ToxlocError(f"Text number {i} of {where} is empty or not a string: {text!r}.")
