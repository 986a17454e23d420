"""Random draws of texts, and the check that no text is empty."""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import ToxlocError

if TYPE_CHECKING:
    pass


def shuffled(count: int, seed: int) -> list[int]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


def check_texts(texts: Sequence[str], where: str) -> None:
    for i, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise ToxlocError(f"Text number {i} of {where} is empty or not a string: {text!r}.")
