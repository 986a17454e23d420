"""Undo the usual tricks that hide a word from a classifier: spaces, repeated letters, signs for letters, asterisks."""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'})
LOOKALIKES = str.maketrans({"@": "a", "4": "a", "3": "e", "1": "i", "!": "i", "0": "o", "5": "s", "$": "s", "7": "t"})
SPACED = re.compile(r"(?<![^\W_])[^\W\d_]([ .\-_*])(?:[^\W\d_]\1)+[^\W\d_](?![^\W_])")  # at least three single letters
SIGNED = re.compile(r"(?<![\w@$!])(?=[a-z]*[@$!013457])[a-z@$!013457]{2,}[a-z@$013457](?![\w@$])")  # 3 letters or more
MASK = re.compile(r"(?<=[a-z])[*#]+(?=[a-z])")
REPEATED = re.compile(r"[a-z]*([a-z])\1\1[a-z]*")
MASKED = re.compile(r"[a-z]+(?:\*[a-z]*)+")
CACHED = 4096


def normalise(text: str) -> str:
    """Return a text in lower case, without spaces between single letters, with one asterisk for each mask.

    Example:
        >>> normalise("What an I D I O T, f##k")
        'what an idiot, f*k'
    """
    text = unicodedata.normalize("NFKC", text).lower().translate(QUOTES)
    text = SPACED.sub(lambda match: match[0].replace(match[1], ""), text)
    return MASK.sub("*", text)


class Spelling:
    """Repairs disguised words, by words that a model knows.

    Args:
        words: words that the model knows.
        masked: words that are often masked, the most likely first.

    Example:
        >>> Spelling(["clown", "good"], ["clown"]).repaired("a cl*wn, a clooown, cl0wn, sooo goood")
        'a clown, a clown, clown, soo good'
    """

    def __init__(self, words: Sequence[str], masked: Sequence[str]):
        self._words, self._masked = frozenset(words), "\n".join(masked)
        self._unmasked = lru_cache(CACHED)(self._find)

    def repaired(self, text: str) -> str:
        """Return a text normalised, with repaired words."""
        text = SIGNED.sub(lambda match: self._with_letters(match[0]), normalise(text))
        text = REPEATED.sub(lambda match: self._without_repeats(match[0]), text)
        return MASKED.sub(lambda match: self._unmasked(match[0]), text)

    def _with_letters(self, word: str) -> str:
        """Return a word with letters in place of signs that look like them, if that is a known word."""
        letters = word.translate(LOOKALIKES)
        is_disguised = not word.isdigit() and word not in self._words and letters in self._words
        return letters if is_disguised else word

    def _without_repeats(self, word: str) -> str:
        """Return a word with one letter in place of three or more if the result is a known word, else with two."""
        doubled, single = (re.sub(r"(.)\1{2,}", letters, word) for letters in (r"\1\1", r"\1"))
        return single if single in self._words and doubled not in self._words else doubled

    def _find(self, word: str) -> str:
        """Return the first word that fits, if an asterisk stands for one or two letters."""
        match = re.search(f"^{word.replace('*', '[a-z]{1,2}')}$", self._masked, re.M)
        return match[0] if match else word
