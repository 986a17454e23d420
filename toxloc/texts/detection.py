"""Detect the language of a text."""

from functools import cache
from typing import Any

from .languages import SAME, UNDETERMINED, language_code

CONFIDENT = 0.8  # probability from which a language is reported


def detect_language(text: str) -> str:
    """Detect the language of a text with py3langid, offline and always with the same result.

    Short texts, numbers, and texts that look like several languages are not decided. The text of a language without a
    code of two letters is taken for the most similar language with such a code. Bosnian, Croatian and Serbian are so
    similar that their probabilities are added.

    Args:
        text: the text.

    Returns:
        The code of the language (ISO 639-1) if its probability is at least .8; otherwise "und", which means
        undetermined.

    Source: Lui and Baldwin 2012, "langid.py: an off-the-shelf language identification tool" (ACL Anthology P12-3005).

    Example:
        >>> detect_language("Guten Morgen, wie geht es dir heute?"), detect_language("Ok!")
        ('de', 'und')
    """
    if not text.strip():
        return UNDETERMINED
    ranked: list[tuple[str, float]] = _identifier().rank(text)
    best = ranked[0][0]
    same = next((codes for codes in SAME if best in codes), {best})
    probability = sum(value for code, value in ranked if code in same)
    return UNDETERMINED if probability < CONFIDENT else language_code(best)


@cache
def _identifier() -> Any:
    """Load the model of py3langid, which takes half a second, for the languages that have a code of two letters."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages([code for code in identifier.labels if len(code) == 2])
    return identifier
