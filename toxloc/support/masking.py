"""Hide offensive words in what people see."""

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def mask(text: str) -> str:
    """Mask a token or text for display: every letter of a word but its first becomes '·', one for one.

    Digits, punctuation and whitespace stay; digits and apostrophes do not end a word.

    Example:
        >>> mask("Don't shout, you 1d10t!")
        "D··'· s····, y·· 1d10·!"
    """
    shown, inside = [], False
    for character in text:
        kind = unicodedata.category(character)[0]
        letter = kind in "LM"  # with combining marks, which would cut words of many scripts into single letters
        shown.append("·" if letter and inside else character)
        inside = letter or (inside and (kind == "N" or character in "'’_"))
    return "".join(shown)
