"""Random draws of texts, and the checks of texts and of the size of a draw."""

import random
from collections.abc import Iterable
from numbers import Real

from ..errors import ToxlocError
from ..support.arguments import as_list, whole_number


def shuffled(count: int, seed: int) -> list[int]:
    """Return the numbers 0 to `count` - 1 in a random order that depends only on `count` and `seed`.

    Raises:
        ToxlocError: the seed is not a whole number of 0 or more.

    Example:
        >>> sorted(shuffled(4, seed=0))
        [0, 1, 2, 3]
    """
    order = list(range(count))
    random.Random(whole_number(seed, "seed")).shuffle(order)
    return order


def check_fraction(fraction: float) -> None:
    """Check that a fraction of the texts is a number between 0 and 1.

    Raises:
        ToxlocError: the fraction is not a number, is NaN, or is not between 0 and 1.
    """
    if not isinstance(fraction, Real) or not 0 < fraction < 1:
        raise ToxlocError(f"fraction={fraction!r} is out of range; give a number between 0 and 1.")


def check_texts(texts: Iterable[str], where: str = "", *, may_be_blank: bool = False) -> list[str]:
    r"""Return texts as a list, after the check that every text can be tokenised and written to a file.

    Args:
        texts: the texts.
        where: name of the collection of texts in the error message; "" for no name.
        may_be_blank: accept texts without any character other than whitespace.

    Raises:
        ToxlocError: the texts are a single string, or a text is not a string, is blank, or has a lone surrogate (half
            of a character of UTF-16, such as "\ud800"); the message gives its position, counted from 0.

    Example:
        >>> check_texts(("Good morning.", "Good night."), "the prompts")
        ['Good morning.', 'Good night.']
    """
    checked = as_list(texts, where or "the texts")
    collection = f" of {where}" if where else ""
    for i, text in enumerate(checked):
        if not isinstance(text, str) or not (may_be_blank or text.strip()):
            raise ToxlocError(f"Text number {i}{collection} is empty or not a string: {text!r}.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ToxlocError(
                f"Text number {i}{collection} has the lone surrogate {text[error.start]!r} at character {error.start}, "
                "which UTF-8 cannot encode; remove it."
            ) from None
    return checked
