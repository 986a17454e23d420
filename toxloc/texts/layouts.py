"""Column names and row layouts of the text files that toxloc reads."""

from collections.abc import Sequence

from ..errors import ToxlocError
from .contrast import ContrastSet
from .prompts import EVERYDAY, PROVOCATIVE, PromptSet
from .tables import Row

TOXIC_COLUMNS = ("toxic", "toxic_text", "toxic_comment", "en_toxic_comment")
NEUTRAL_COLUMNS = ("neutral", "neutral1", "neutral_text", "neutral_comment", "en_neutral_comment")
TEXT_COLUMNS = ("text", "prompt", "comment_text", "comment", "sentence", "content")
LABEL_COLUMNS = ("label", "toxicity", "is_toxic", "toxic")
TOXIC_LABELS = {"1", "1.0", "true", "toxic", "hate", "hateful", "offensive", "abusive"}
NEUTRAL_LABELS = {"0", "0.0", "false", "neutral", "nontoxic", "non-toxic", "non-hateful", "neither", "none", "normal"}
TOXIC_FROM, NEUTRAL_TO = 0.5, 0.25  # thresholds on toxicity scores; texts with scores in between are left out


def is_text(value: object) -> bool:
    """Whether a cell of a table holds a string with more than whitespace in it."""
    return isinstance(value, str) and bool(value.strip())


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
        value: a class name ("toxic", "normal", ...), 0 or 1, or a toxicity score from 0 to 1 as a float.

    Returns:
        True for toxic (a score of at least .5), False for neutral (a score of at most .25), None for a score in
        between, an unknown class name or a missing value. The class name "none" means neutral.

    Example:
        >>> [toxicity_label(value) for value in ("hate", 0, 0.4)]
        [True, False, None]
    """
    if isinstance(value, float) and 0 <= value <= 1:
        return True if value >= TOXIC_FROM else False if value <= NEUTRAL_TO else None
    if value is None:
        return None
    word = str(value).strip().lower()
    return True if word in TOXIC_LABELS else False if word in NEUTRAL_LABELS else None


def is_realtoxicityprompts(row: Row) -> bool:
    """Whether a row has the layout of RealToxicityPrompts (Gehman et al. 2020, arXiv:2009.11462)."""
    return isinstance(row.get("prompt"), dict) and isinstance(row.get("continuation"), dict)


def realtoxicityprompts_contrast(rows: Sequence[Row], name: str) -> ContrastSet:
    """Make a contrast set from rows in the layout of RealToxicityPrompts.

    A text is a prompt followed by its continuation. It is toxic if either part has a score of at least .5, and neutral
    if no part has a score above .25. Rows with scores in between, without scores or with an empty part are left out.

    Raises:
        ToxlocError: no text is toxic, or no text is neutral.
    """
    sides: dict[bool, list[str]] = {True: [], False: []}
    for row in rows:
        parts = [row["prompt"], row["continuation"]]
        if not all(is_text(part["text"]) for part in parts):
            continue
        scores = [float(part["toxicity"]) for part in parts if part.get("toxicity") is not None]
        if scores and (toxic := toxicity_label(max(scores))) is not None:
            sides[toxic].append("".join(part["text"] for part in parts))
    return ContrastSet(sides[True], sides[False], name)


def realtoxicityprompts_prompts(rows: Sequence[Row], name: str, selection: str | None) -> PromptSet:
    """Make a prompt set from rows in the layout of RealToxicityPrompts.

    Args:
        rows: at least one row; rows whose prompt is empty or has no toxicity score are left out.
        name: name of the prompt set.
        selection: the prompts to keep, as `which` of `load_prompts`.

    Raises:
        ToxlocError: no row has such a prompt.
    """
    marked = any(row.get("challenging") for row in rows)
    texts, kinds, scores = [], [], []
    for row in rows:
        toxicity = row["prompt"].get("toxicity")
        if toxicity is None or not is_text(row["prompt"]["text"]):
            continue
        toxic, challenging = toxicity >= TOXIC_FROM, bool(row.get("challenging"))
        kind = PROVOCATIVE if (challenging if marked and selection is None else toxic or challenging) else EVERYDAY
        wanted = {
            None: kind == PROVOCATIVE or not toxic,
            "all": True,
            "toxic": toxic,
            "nontoxic": not toxic,
            "challenging": challenging,
        }[selection]
        if wanted:
            texts.append(row["prompt"]["text"].rstrip())
            kinds.append(kind)
            scores.append(float(toxicity))
    if not texts:
        raise ToxlocError(
            f"{name} has no {selection or 'scored'} prompts"
            + ("; none of its prompts is marked as challenging." if selection == "challenging" and not marked else ".")
        )
    return PromptSet(texts, kinds, scores, name)
