"""Load contrast sets, prompts and neutral text from built-in files, local files and hub datasets."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ToxlocError
from ..support.assets import ASSETS
from .contrast import ContrastSet
from .drawing import shuffled
from .layouts import (
    LABEL_COLUMNS,
    NEUTRAL_COLUMNS,
    TEXT_COLUMNS,
    TOXIC_COLUMNS,
    column_of,
    contrast_of_realtoxicityprompts,
    is_realtoxicityprompts,
    is_text,
    is_toxic,
    prompts_of_realtoxicityprompts,
)
from .neutral import NeutralText
from .prompts import EVERYDAY, PROVOCATIVE, PromptSet
from .tables import Row, read_rows

if TYPE_CHECKING:
    pass
BUILT_IN_PROMPTS = {"builtin": "openings", "sensitive": "sensitive"}
WHICH = ("all", "toxic", "nontoxic", "challenging")


def load_contrast(source: str = "builtin", *, toxic_column: str | None = None, neutral_column: str | None = None,
                  text_column: str | None = None, label_column: str | None = None,
                  split: str = "train") -> ContrastSet:
    """Load a contrast set.

    Args:
        source: "builtin" (520 pairs written for toxloc), a CSV, TSV, JSON Lines or Parquet file, or a hub
            dataset's id (`id:config` where it has several).
        toxic_column: column of toxic texts; recognised if it has a usual name ("toxic", ...).
        neutral_column: column of neutral texts of the same rows; recognised likewise (ParaDetox's are).
        text_column: instead of the two, one column of texts ...
        label_column: ... and one that says which are toxic: a class, or a toxicity from 0 to 1, of which .5 and
            over is toxic and .25 and under neutral. RealToxicityPrompts' layout is known: prompt and continuation
            together are a text, toxic if either is, neutral if both are.
        split: of a hub dataset.

    Raises:
        ToxlocError: nothing readable there, no such columns, or one side empty.

    Example:
        >>> pairs = load_contrast("builtin")
        >>> len(pairs.toxic), pairs.paired
        (520, True)
    """
    if source == "builtin":
        rows = _built_in("contrast")
        return ContrastSet([r["toxic"] for r in rows], [r["neutral"] for r in rows], "builtin", paired=True)
    rows = read_rows(source, split)
    name = Path(source).name
    columns = list(rows[0])
    if is_realtoxicityprompts(rows[0]):
        return contrast_of_realtoxicityprompts(rows, name)
    toxic = column_of(columns, toxic_column, TOXIC_COLUMNS)
    neutral = column_of(columns, neutral_column, NEUTRAL_COLUMNS)
    if toxic and neutral and text_column is None:
        both = [(str(r[toxic]), str(r[neutral])) for r in rows if is_text(r[toxic]) and is_text(r[neutral])]
        return ContrastSet([t for t, _ in both], [n for _, n in both], name, paired=True)
    text = column_of(columns, text_column, TEXT_COLUMNS)
    label = column_of(columns, label_column, LABEL_COLUMNS)
    if text and label:
        marked = [(str(r[text]), is_toxic(r[label])) for r in rows if is_text(r[text])]
        return ContrastSet([t for t, y in marked if y is True], [t for t, y in marked if y is False], name)
    raise ToxlocError(
        f"{name} has the columns {', '.join(columns)}; a contrast set needs a toxic and a neutral column, or a text "
        "and a label column: rename them so, or name them in Python (toxic_column=, neutral_column= or text_column=, "
        "label_column=)."
    )


def load_prompts(source: str = "builtin", *, which: str | None = None, text_column: str | None = None,
                 words: int | None = None, split: str = "train") -> PromptSet:
    """Load openings for a model to complete.

    Args:
        source: "builtin" (130 provocative and 130 everyday openings written for toxloc), "sensitive" (90 harmless ones
            that mention identities, anger and illness; see `over_suppression`), a CSV, TSV, JSON Lines, Parquet or text
            file (one prompt a line), or a hub dataset's id.
        which: "all", "toxic", "nontoxic" or "challenging" ones alone, as protocols choose them. Without it challenging
            prompts of RealToxicityPrompts (where the file marks them, else those of toxicity .5 and over) are
            provocative, those of toxicity under .5 everyday, and the rest is left out.
        text_column: recognised if it has a usual name ("text", "prompt", ...). A column `kind` is kept.
            RealToxicityPrompts' layout is known.
        words: take only the first so many words of each text, and leave out texts that have no more: an opening to be
            completed, of sentences that are complete.
        split: of a hub dataset.

    Raises:
        ToxlocError: nothing readable there, no such column, or no such prompts.

    Example:
        >>> len(load_prompts("builtin").only("provocative"))
        130
    """
    if which not in (None, *WHICH):
        raise ToxlocError(f"which={which!r}: choose one of {', '.join(WHICH)}.")
    prompts = _whole_prompts(source, which, text_column, split)
    return prompts if words is None else prompts.cut(words)


def _whole_prompts(source: str, which: str | None, text_column: str | None, split: str) -> PromptSet:
    if source in BUILT_IN_PROMPTS:
        rows = _built_in(BUILT_IN_PROMPTS[source])
        return _chosen(PromptSet([r["text"] for r in rows], [r["kind"] for r in rows], None, source), which)
    rows = read_rows(source, split)
    name = Path(source).name
    if isinstance(rows[0].get("prompt"), dict):
        return prompts_of_realtoxicityprompts(rows, name, which)
    text = column_of(list(rows[0]), text_column, TEXT_COLUMNS)
    if text is None:
        raise ToxlocError(f"{name} has the columns {', '.join(rows[0])}; name the one with the prompts "
                          "(text_column=).")
    rows = [r for r in rows if is_text(r[text])]
    kinds = [str(r["kind"]) for r in rows] if rows and "kind" in rows[0] else None
    return _chosen(PromptSet([str(r[text]).rstrip() for r in rows], kinds, None, name), which)


def load_neutral(source: str = "builtin", *, text_column: str | None = None, limit: int | None = 500,
                 min_words: int = 8, seed: int = 0) -> NeutralText:
    """Load everyday text and divide it into the parts to fit, to tune and to check.

    Args:
        source: "builtin" (860 passages and comments written for toxloc), a text file (one passage a line; WikiText's
            headings are left out), or a table with a text column.
        text_column: recognised if it has a usual name.
        limit: passages drawn, at random; None for all.
        min_words: shorter passages of a file are left out.
        seed: of the draw and the division.

    Raises:
        ToxlocError: nothing readable there, or too few passages.
    """
    if source == "builtin":
        return NeutralText.split([r["text"] for r in _built_in("neutral")][:limit], seed, "builtin")
    rows = read_rows(source)
    name = Path(source).name
    text = column_of(list(rows[0]), text_column, TEXT_COLUMNS)
    if text is None:
        raise ToxlocError(f"{name} has the columns {', '.join(rows[0])}; name the one with the text (text_column=).")
    texts = [str(r[text]).strip() for r in rows if is_text(r[text])]
    texts = [t for t in texts if len(t.split()) >= min_words and not re.match(r"= .* =$", t)]
    texts = list(dict.fromkeys(texts))
    return NeutralText.split([texts[i] for i in shuffled(len(texts), seed)[:limit]], seed, name)


def _built_in(name: str) -> list[Row]:
    path = ASSETS / "prompts" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _chosen(prompts: PromptSet, which: str | None) -> PromptSet:
    """Choose by kind, where there is nothing else to go by."""
    if which in (None, "all"):
        return prompts
    chosen = prompts.only(EVERYDAY if which == "nontoxic" else PROVOCATIVE)
    if chosen is None:
        raise ToxlocError(f"{prompts.name} does not say which prompts are {which}; add a column kind of "
                          f"{PROVOCATIVE} and {EVERYDAY}, or give prompts in RealToxicityPrompts' layout.")
    return chosen
