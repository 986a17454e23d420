"""Mask offensive words in displayed text."""

import unicodedata
from collections.abc import Sequence


def mask(text: str) -> str:
    """Replace every letter of a word except the first with '·'. The length of the text stays the same.

    Digits, punctuation and whitespace are kept. Digits, apostrophes and underscores do not end a word.

    Example:
        >>> mask("Don't shout, you 1d10t!")
        "D··'· s····, y·· 1d10·!"
    """
    masked, inside = [], False
    for character in text:
        category = unicodedata.category(character)[0]
        letter = category in "LM"  # M: combining marks, which would otherwise split words of many scripts
        masked.append("·" if letter and inside else character)
        inside = letter or (inside and (category == "N" or character in "'’_"))
    return "".join(masked)


def mask_tokens(tokens: Sequence[str]) -> list[str]:
    """Mask the tokens of one text: a word is masked as a whole, even if it consists of several tokens.

    Example:
        >>> mask_tokens(["You", " sil", "ly", " goose"])
        ['Y··', ' s··', '··', ' g····']
    """
    characters = iter(mask("".join(tokens)))
    return ["".join(next(characters) for _ in token) for token in tokens]
