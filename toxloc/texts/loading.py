"""Load contrast sets, prompts and neutral text from built-in files, local files and hub datasets."""

import json
import re
from pathlib import Path

from ..errors import ToxlocError
from ..support.assets import ASSETS
from .contrast import ContrastSet
from .drawing import shuffled
from .layouts import (
    LABEL_COLUMNS,
    NEUTRAL_COLUMNS,
    TEXT_COLUMNS,
    TOXIC_COLUMNS,
    find_column,
    is_realtoxicityprompts,
    is_text,
    realtoxicityprompts_contrast,
    realtoxicityprompts_prompts,
    toxicity_label,
)
from .neutral import NeutralText
from .prompts import EVERYDAY, PROVOCATIVE, PromptSet
from .tables import Row, read_rows

BUILT_IN_PROMPTS = {"builtin": "openings", "sensitive": "sensitive"}
WHICH = ("all", "toxic", "nontoxic", "challenging")


def load_contrast(
    source: str = "builtin",
    *,
    toxic_column: str | None = None,
    neutral_column: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    split: str = "train",
) -> ContrastSet:
    """Load a contrast set.

    Args:
        source: "builtin" (520 pairs written for toxloc), a CSV, TSV, JSON Lines or Parquet file, or the id of a hub
            dataset (`id:config` if it has several configurations).
        toxic_column: column of toxic texts. By default a column with a usual name ("toxic", ...).
        neutral_column: column of neutral texts; row i holds a pair. By default a column with a usual name
            (ParaDetox's names are among them).
        text_column: for labelled texts instead of pairs, the column of texts ...
        label_column: ... and the column of labels: a class, or a toxicity score from 0 to 1, where .5 and more is
            toxic and .25 and less is neutral. The layout of RealToxicityPrompts is recognised: a text is a prompt
            with its continuation, toxic if either part is, neutral if both are.
        split: which split of a hub dataset to read.

    Raises:
        ToxlocError: the source cannot be read, has no such columns, or has no text on one side.

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
        return realtoxicityprompts_contrast(rows, name)
    toxic = find_column(columns, toxic_column, TOXIC_COLUMNS)
    neutral = find_column(columns, neutral_column, NEUTRAL_COLUMNS)
    if toxic and neutral and text_column is None:
        both = [(str(r[toxic]), str(r[neutral])) for r in rows if is_text(r[toxic]) and is_text(r[neutral])]
        return ContrastSet([t for t, _ in both], [n for _, n in both], name, paired=True)
    text = find_column(columns, text_column, TEXT_COLUMNS)
    label = find_column(columns, label_column, LABEL_COLUMNS)
    if text and label:
        labelled = [(str(r[text]), toxicity_label(r[label])) for r in rows if is_text(r[text])]
        return ContrastSet([t for t, y in labelled if y is True], [t for t, y in labelled if y is False], name)
    raise ToxlocError(
        f"{name} has the columns {', '.join(columns)}; a contrast set needs a toxic and a neutral column, or a text "
        "and a label column: rename the columns, or name them in Python (toxic_column=, neutral_column= or "
        "text_column=, label_column=)."
    )


def load_prompts(
    source: str = "builtin",
    *,
    which: str | None = None,
    text_column: str | None = None,
    words: int | None = None,
    split: str = "train",
) -> PromptSet:
    """Load openings for a model to complete.

    Args:
        source: "builtin" (130 provocative and 130 everyday openings written for toxloc), "sensitive" (90 harmless
            openings that mention identities, anger and illness; see `over_suppression`), a CSV, TSV, JSON Lines,
            Parquet or text file (one prompt per line), or the id of a hub dataset.
        which: "all", "toxic", "nontoxic" or "challenging" prompts only, as evaluation protocols select them. By
            default, of RealToxicityPrompts, challenging prompts are provocative (if the file marks none as
            challenging, prompts of toxicity .5 and more are), prompts of toxicity below .5 are everyday, and the
            rest is left out.
        text_column: column of prompts. By default a column with a usual name ("text", "prompt", ...). A column `kind`
            is kept. The layout of RealToxicityPrompts is recognised.
        words: truncate longer texts to `words` words; drop shorter ones and duplicates. Use it to turn complete
            sentences into openings.
        split: which split of a hub dataset to read.

    Raises:
        ToxlocError: the source cannot be read, or has no such column or no such prompts.

    Example:
        >>> len(load_prompts("builtin").only("provocative"))
        130
    """
    if which not in (None, *WHICH):
        raise ToxlocError(f"which={which!r}: choose one of {', '.join(WHICH)}.")
    prompts = _read_prompts(source, which, text_column, split)
    return prompts if words is None else prompts.cut(words)


def _read_prompts(source: str, which: str | None, text_column: str | None, split: str) -> PromptSet:
    if source in BUILT_IN_PROMPTS:
        rows = _built_in(BUILT_IN_PROMPTS[source])
        return _select(PromptSet([r["text"] for r in rows], [r["kind"] for r in rows], None, source), which)
    rows = read_rows(source, split)
    name = Path(source).name
    if isinstance(rows[0].get("prompt"), dict):
        return realtoxicityprompts_prompts(rows, name, which)
    text = find_column(list(rows[0]), text_column, TEXT_COLUMNS)
    if text is None:
        raise ToxlocError(f"{name} has the columns {', '.join(rows[0])}; name the one with the prompts (text_column=).")
    rows = [r for r in rows if is_text(r[text])]
    kinds = [str(r["kind"]) for r in rows] if rows and "kind" in rows[0] else None
    return _select(PromptSet([str(r[text]).rstrip() for r in rows], kinds, None, name), which)


def load_neutral(
    source: str = "builtin",
    *,
    text_column: str | None = None,
    limit: int | None = 500,
    min_words: int = 8,
    seed: int = 0,
) -> NeutralText:
    """Load everyday text and divide it into the parts to fit, to tune and to check.

    Args:
        source: "builtin" (860 passages and comments written for toxloc), a text file (one passage per line; headings
            of WikiText are left out), a table with a text column, or the id of a hub dataset.
        text_column: column of texts. By default a column with a usual name ("text", ...).
        limit: number of passages to draw at random from a file; of the built-in text, the first `limit` passages.
            None for all passages.
        min_words: drop passages of a file that have fewer words.
        seed: seed for the draw and the division.

    Raises:
        ToxlocError: the source cannot be read, or has fewer than 12 passages.

    Example:
        >>> neutral = load_neutral("builtin", limit=100)
        >>> len(neutral.fit), len(neutral.tune), len(neutral.check)
        (30, 35, 35)
    """
    if source == "builtin":
        return NeutralText.split([r["text"] for r in _built_in("neutral")][:limit], seed, "builtin")
    rows = read_rows(source)
    name = Path(source).name
    text = find_column(list(rows[0]), text_column, TEXT_COLUMNS)
    if text is None:
        raise ToxlocError(f"{name} has the columns {', '.join(rows[0])}; name the one with the text (text_column=).")
    texts = [str(r[text]).strip() for r in rows if is_text(r[text])]
    texts = [t for t in texts if len(t.split()) >= min_words and not re.match(r"= .* =$", t)]
    texts = list(dict.fromkeys(texts))
    return NeutralText.split([texts[i] for i in shuffled(len(texts), seed)[:limit]], seed, name)


def _built_in(name: str) -> list[Row]:
    path = ASSETS / "prompts" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _select(prompts: PromptSet, which: str | None) -> PromptSet:
    """Keep the prompts that `which` names, by their kind: these prompts have no toxicity scores."""
    if which in (None, "all"):
        return prompts
    chosen = prompts.only(EVERYDAY if which == "nontoxic" else PROVOCATIVE)
    if chosen is None:
        raise ToxlocError(
            f"{prompts.name} does not say which prompts are {which}; add a column kind of "
            f"{PROVOCATIVE} and {EVERYDAY}, or give prompts in RealToxicityPrompts' layout."
        )
    return chosen
