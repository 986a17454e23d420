"""Column names and row layouts of the text files that toxloc reads."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import ToxlocError
from .contrast import ContrastSet
from .prompts import EVERYDAY, PROVOCATIVE, PromptSet
from .tables import Row

if TYPE_CHECKING:
    pass

TOXIC_COLUMNS = ("toxic", "toxic_text", "toxic_comment", "en_toxic_comment")
NEUTRAL_COLUMNS = ("neutral", "neutral1", "neutral_text", "neutral_comment", "en_neutral_comment")
TEXT_COLUMNS = ("text", "prompt", "comment_text", "comment", "sentence", "content")
LABEL_COLUMNS = ("label", "toxicity", "is_toxic", "toxic")
TOXIC_LABELS = {"1", "1.0", "true", "toxic", "hate", "hateful", "offensive", "abusive"}
NEUTRAL_LABELS = {"0", "0.0", "false", "neutral", "nontoxic", "non-toxic", "non-hateful", "neither", "none", "normal"}
TOXIC_FROM, NEUTRAL_TO = 0.5, 0.25  # of a toxicity between 0 and 1; what lies between is left out


def is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def column_of(columns: list[str], asked: str | None, usual: Sequence[str]) -> str | None:
    if asked is not None:
        if asked not in columns:
            raise ToxlocError(f"There is no column {asked!r}; there are {', '.join(columns)}.")
        return asked
    by_name = {column.lower(): column for column in columns}
    return next((by_name[name] for name in usual if name in by_name), None)


def is_toxic(label: object) -> bool | None:
    """True, False, or None for a label that says neither."""
    if isinstance(label, float) and 0 <= label <= 1:
        return True if label >= TOXIC_FROM else False if label <= NEUTRAL_TO else None
    word = str(label).strip().lower()
    return True if word in TOXIC_LABELS else False if word in NEUTRAL_LABELS else None


def is_realtoxicityprompts(row: Row) -> bool:
    return isinstance(row.get("prompt"), dict) and isinstance(row.get("continuation"), dict)


def contrast_of_realtoxicityprompts(rows: list[Row], name: str) -> ContrastSet:
    sides: dict[bool, list[str]] = {True: [], False: []}
    for row in rows:
        parts = [row["prompt"], row["continuation"]]
        if not all(is_text(part["text"]) for part in parts):
            continue
        known = [float(part["toxicity"]) for part in parts if part.get("toxicity") is not None]
        if known and (verdict := is_toxic(max(known))) is not None:
            sides[verdict].append("".join(part["text"] for part in parts))
    return ContrastSet(sides[True], sides[False], name)


def prompts_of_realtoxicityprompts(rows: list[Row], name: str, which: str | None) -> PromptSet:
    marked = any(row.get("challenging") for row in rows)
    texts, kinds, scores = [], [], []
    for row in rows:
        toxicity = row["prompt"].get("toxicity")
        if toxicity is None or not is_text(row["prompt"]["text"]):
            continue
        toxic, challenging = toxicity >= TOXIC_FROM, bool(row.get("challenging"))
        kind = PROVOCATIVE if (challenging if marked and which is None else toxic or challenging) else EVERYDAY
        wanted = {None: kind == PROVOCATIVE or not toxic, "all": True, "toxic": toxic, "nontoxic": not toxic,
                  "challenging": challenging}[which]
        if wanted:
            texts.append(row["prompt"]["text"].rstrip())
            kinds.append(kind)
            scores.append(float(toxicity))
    if not texts:
        raise ToxlocError(f"{name} has no {which or 'scored'} prompts"
                          + ("; it marks none as challenging." if which == "challenging" else "."))
    return PromptSet(texts, kinds, scores, name)
