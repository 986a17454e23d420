"""Codes and names of languages."""

import re
from collections.abc import Sequence
from functools import cache

from ..errors import ToxlocError
from ..support.arguments import short_repr
from ..support.assets import ASSETS

UNDETERMINED = "und"  # the code of ISO 639-2 for a language that is not known
EVERY_LANGUAGE = "*"  # in a list of languages: practically all of them
NO_LANGUAGE = (UNDETERMINED, "zxx", "mul")  # codes of ISO 639-2: undetermined, no linguistic content, several languages
# Standard varieties of a single language: who reads one of them reads all of them.
SAME = ({"bs", "hr", "sh", "sr"},)


def language_code(value: str) -> str:
    """Return the code of a language: two letters (ISO 639-1) if there are any, otherwise three (ISO 639-3).

    Regions and scripts are left out, and codes of three letters become codes of two. Bokmål and Nynorsk become
    Norwegian ("no"), and "BCMS" (Bosnian, Croatian, Montenegrin, Serbian) becomes "sh".

    Args:
        value: a code in any case, such as "de", "pt-BR", "zh-Hans", "deu" or "en_US.UTF-8", or an English name.

    Raises:
        ToxlocError: the value is neither a code nor an English name of a language.

    Example:
        >>> [language_code(value) for value in ("pt-BR", "zh-Hans", "NO-NB", "deu", "German")]
        ['pt', 'zh', 'no', 'de', 'de']
    """
    codes, _ = _table()
    word = value.strip().lower()
    first = re.split(r"[-_.@]", word)[0]
    code = codes.get(word) or codes.get(first)
    if code is None and not re.fullmatch("[a-z]{3}", first):
        raise ToxlocError(f"{short_repr(value)} is not a language; write its ISO 639-1 code, such as en, de or pt-BR.")
    return code or first


def language_name(code: str) -> str:
    """Return the English name of a language with its code; only the code if there is no code of two letters.

    Example:
        >>> language_name("de"), language_name("ceb")
        ('German (de)', 'ceb')
    """
    name = short_language_name(code)
    return code if name == code else f"{name} ({code})"


def short_language_name(code: str) -> str:
    """Return the English name of a language, or its code if there is no code of two letters.

    Example:
        >>> short_language_name("de")
        'German'
    """
    return _table()[1].get(code, code)


def knows(languages: Sequence[str] | None, code: str) -> bool | None:
    """Return whether a list of languages covers a language; None if the list or the language is not known.

    Args:
        languages: codes of languages, ("*",) for practically all languages, or None if they are not known.
        code: code of the language.

    Example:
        >>> knows(("en", "fr"), "de"), knows(("*",), "de"), knows(None, "de"), knows(("hr",), "sr")
        (False, True, None, True)
    """
    if languages is None or code in NO_LANGUAGE:
        return None
    same = next((codes for codes in SAME if code in codes), {code})
    return EVERY_LANGUAGE in languages or not same.isdisjoint(languages)


@cache
def _table() -> tuple[dict[str, str], dict[str, str]]:
    """Return the code of two letters of each code and English name in lower case, and the name of each code.

    The codes and names are those of the Unicode Common Locale Data Repository.
    """
    rows = [
        line.split("\t") for line in (ASSETS / "languages.tsv").read_text(encoding="utf-8").rstrip("\n").split("\n")[1:]
    ]
    codes = {spelling: code for code, name, others in rows for spelling in (name.lower(), code, *others.split())}
    return codes, {code: name for code, name, _ in rows}
