"""Column names and row layouts of the text files that toxloc reads."""

import math
from collections.abc import Sequence
from textwrap import shorten

from ..errors import ToxlocError
from ..support.arguments import short_repr
from ..support.control_characters import visible
from .contrast import ContrastSet
from .languages import UNDETERMINED, language_code
from .prompts import EVERYDAY, PROVOCATIVE, PromptSet, is_score
from .records import Row

TOXIC_COLUMNS = ("toxic", "toxic_text", "toxic_comment", "en_toxic_comment")
NEUTRAL_COLUMNS = ("neutral", "neutral1", "neutral_text", "neutral_comment", "en_neutral_comment")
TEXT_COLUMNS = ("text", "prompt", "comment_text", "comment", "sentence", "content")
LABEL_COLUMNS = ("label", "toxicity", "is_toxic", "toxic")
LANGUAGE_COLUMNS = ("language", "lang", "locale")
CATEGORY_COLUMNS = ("category",)
UNCATEGORIZED = "uncategorized"  # category of a prompt whose cell is empty
TOXIC_LABELS = {"true", "toxic", "hate", "hateful", "offensive", "abusive"}
NEUTRAL_LABELS = {"false", "neutral", "nontoxic", "non-toxic", "non-hateful", "neither", "none", "normal"}
TOXIC_FROM, NEUTRAL_TO = 0.5, 0.25  # thresholds on toxicity scores; texts with scores in between are left out


def text_in(row: Row, column: str, where: str) -> str | None:
    """Return the text in a cell of a table; None if there is no cell, or if it is None, NaN or blank.

    Args:
        row: the row, or the part of a row that has the cell.
        column: name of the column.
        where: name of the row in the error message, for example "row 3 of texts.csv".

    Raises:
        ToxlocError: the cell holds a value of another type.

    Example:
        >>> text_in({"text": "Good morning"}, "text", "row 0")
        'Good morning'
    """
    value = row.get(column)
    if is_missing(value) or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, str):
        raise wrong_value(value, column, where, "a text")
    return value


def label_in(row: Row, column: str, where: str) -> bool | None:
    """Return the label in a cell of a table, as `toxicity_label` reads it; see `text_in`.

    Raises:
        ToxlocError: the cell holds a list or an object.
    """
    value = row.get(column)
    if isinstance(value, list | dict):
        raise wrong_value(value, column, where, "a class name or a score")
    return toxicity_label(value)


def language_in(row: Row, column: str, where: str) -> str:
    """Return the code of the language in a cell of a table; "und" for a missing value. See `text_in`.

    Raises:
        ToxlocError: the cell holds neither a code nor an English name of a language.

    Example:
        >>> language_in({"locale": "pt-BR"}, "locale", "row 0")
        'pt'
    """
    text = text_in(row, column, where)
    if text is None:
        return UNDETERMINED
    try:
        return language_code(text)
    except ToxlocError:
        raise wrong_value(text, column, where, "a language such as en, de or pt-BR") from None


def category_in(row: Row, column: str, where: str) -> str:
    """Return the category in a cell of a table; "uncategorized" for a missing value. See `text_in`.

    Raises:
        ToxlocError: the cell holds a list or an object.

    Example:
        >>> category_in({"category": "insult "}, "category", "row 0")
        'insult'
    """
    value = row.get(column)
    if isinstance(value, list | dict):
        raise wrong_value(value, column, where, "a text")
    return UNCATEGORIZED if is_missing(value) else str(value).strip() or UNCATEGORIZED


def columns_of(rows: Sequence[Row]) -> str:
    """Return the names of the columns of a table, as a message shows them."""
    return shorten(", ".join(map(visible, rows[0])), 300, placeholder=" …")


def is_missing(value: object) -> bool:
    """Return whether a cell of a table has no value."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def wrong_value(value: object, column: str, where: str, wanted: str) -> ToxlocError:
    """Return the error that says which cell holds a value of a wrong type."""
    return ToxlocError(f"In {where}, {column!r} is {short_repr(value)}, not {wanted}; correct or remove the row.")


def find_column(columns: Sequence[str], requested: str | None, usual: Sequence[str]) -> str | None:
    """Choose a column of a table.

    Args:
        columns: the columns that the table has.
        requested: name of the column that the user asked for, or None.
        usual: column names to look for if no column was requested, in this order and ignoring case.

    Returns:
        The name of the column as the table spells it; None if no column was requested and no column has a usual name.

    Raises:
        ToxlocError: the table has no column `requested`.

    Example:
        >>> find_column(["id", "Text"], None, ["text", "comment"])
        'Text'
    """
    if requested is not None:
        if requested not in columns:
            raise ToxlocError(f"There is no column {requested!r}; choose one of {', '.join(columns)}.")
        return requested
    by_name = {column.lower(): column for column in columns}
    return next((by_name[name] for name in usual if name in by_name), None)


def toxicity_label(value: object) -> bool | None:
    """Read a class name or a toxicity score as a label.

    Args:
        value: a class name ("toxic", "normal", ...), or a toxicity score from 0 to 1, which may be written as text.

    Returns:
        True for toxic (a score of at least .5), False for neutral (a score of at most .25), None for a score in
        between or out of range, an unknown class name or a missing value. The class name "none" means neutral.

    Example:
        >>> [toxicity_label(value) for value in ("hate", 0, "0.9", 0.4)]
        [True, False, True, None]
    """
    word = str(value).strip().lower() if value is not None else ""
    try:
        score = float(word)
    except ValueError:
        return True if word in TOXIC_LABELS else False if word in NEUTRAL_LABELS else None
    return True if TOXIC_FROM <= score <= 1 else False if 0 <= score <= NEUTRAL_TO else None


def is_realtoxicityprompts(row: Row) -> bool:
    """Whether a row has the layout of RealToxicityPrompts (Gehman et al. 2020, arXiv:2009.11462)."""
    return isinstance(row.get("prompt"), dict) and isinstance(row.get("continuation"), dict)


def realtoxicityprompts_contrast(rows: Sequence[Row], name: str) -> ContrastSet:
    """Make a contrast set from rows in the layout of RealToxicityPrompts.

    A text is a prompt followed by its continuation. It is toxic if either part has a score of at least .5, and neutral
    if no part has a score above .25. Rows with scores in between, without scores or without one of the texts are left
    out: a part, a text or a score is missing if it is None, NaN or blank.

    Raises:
        ToxlocError: no text is toxic, no text is neutral, or a value has a wrong type: a part that is not an object, a
            text that is not a string, or a score that is not a number from 0 to 1.
    """
    sides: dict[bool, list[str]] = {True: [], False: []}
    for i, row in enumerate(rows):
        where = f"row {i} of {name}"
        texts, scores = zip(*(_part(row, part, where) for part in ("prompt", "continuation")), strict=True)
        known = [score for score in scores if score is not None]
        if all(texts) and known and (toxic := toxicity_label(max(known))) is not None:
            sides[toxic].append("".join(texts))
    return ContrastSet(sides[True], sides[False], name)


def realtoxicityprompts_prompts(rows: Sequence[Row], name: str, selection: str | None) -> PromptSet:
    """Make a prompt set from rows in the layout of RealToxicityPrompts.

    Args:
        rows: at least one row; rows without a prompt or without its toxicity score are left out, as in
            `realtoxicityprompts_contrast`. Continuations are not read.
        name: name of the prompt set.
        selection: the prompts to keep, as `which` of `load_prompts`.

    Raises:
        ToxlocError: no row has such a prompt, or a value has a wrong type, as in `realtoxicityprompts_contrast`; or
            "challenging" is neither true nor false.
    """
    challenges = [_is_challenging(row, f"row {i} of {name}") for i, row in enumerate(rows)]
    marked = any(challenges)
    texts, kinds, scores = [], [], []
    for i, (row, challenging) in enumerate(zip(rows, challenges, strict=True)):
        text, toxicity = _part(row, "prompt", f"row {i} of {name}")
        if text is None or toxicity is None:
            continue
        toxic = toxicity >= TOXIC_FROM
        kind = PROVOCATIVE if (challenging if marked and selection is None else toxic or challenging) else EVERYDAY
        wanted = {
            None: kind == PROVOCATIVE or not toxic,
            "all": True,
            "toxic": toxic,
            "nontoxic": not toxic,
            "challenging": challenging,
        }[selection]
        if wanted:
            texts.append(text.rstrip())
            kinds.append(kind)
            scores.append(toxicity)
    if not texts:
        raise ToxlocError(
            f"{name} has no {selection or 'scored'} prompts"
            + ("; none of its prompts is marked as challenging." if selection == "challenging" and not marked else ".")
        )
    return PromptSet(texts, kinds, scores, name)


def _part(row: Row, column: str, where: str) -> tuple[str | None, float | None]:
    """Return the text and the toxicity score of a prompt or a continuation; None for each that is missing."""
    part = row.get(column)
    if part is None:
        return None, None
    if not isinstance(part, dict):
        raise wrong_value(part, column, where, "an object with a text and a toxicity")
    where = f"the {column} of {where}"
    toxicity = part.get("toxicity")
    if is_missing(toxicity):
        return text_in(part, "text", where), None
    if not is_score(toxicity):
        raise wrong_value(toxicity, "toxicity", where, "a score from 0 to 1")
    return text_in(part, "text", where), float(toxicity)


def _is_challenging(row: Row, where: str) -> bool:
    value = row.get("challenging")
    if is_missing(value):
        return False
    if value not in (True, False):
        raise wrong_value(value, "challenging", where, "true or false")
    return bool(value)
