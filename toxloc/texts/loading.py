"""Load contrast sets, prompts and neutral text from built-in files, local files and hub datasets."""

import re
from pathlib import Path

from ..errors import ToxlocError
from ..support.arguments import whole_number
from ..support.assets import ASSETS
from ..support.control_characters import visible
from .contrast import ContrastSet
from .drawing import shuffled
from .layouts import (
    CATEGORY_COLUMNS,
    LABEL_COLUMNS,
    LANGUAGE_COLUMNS,
    NEUTRAL_COLUMNS,
    TEXT_COLUMNS,
    TOXIC_COLUMNS,
    category_in,
    columns_of,
    find_column,
    is_realtoxicityprompts,
    label_in,
    language_in,
    realtoxicityprompts_contrast,
    realtoxicityprompts_prompts,
    text_in,
)
from .multilingual import is_polyglotoxicityprompts, is_rtp_lx, polyglotoxicityprompts, rtp_lx_prompts
from .neutral import MIN_TEXTS, NeutralText
from .prompts import EVERYDAY, PROVOCATIVE, PromptSet
from .records import Row, read_records
from .requests import conversations, has_conversations, is_xstest, xstest
from .tables import read_rows

BUILT_IN_PROMPTS = {"builtin": "openings", "sensitive": "sensitive", "requests": "requests"}
SELECTIONS = ("all", "toxic", "nontoxic", "challenging")


def load_contrast(
    source: str = "builtin",
    *,
    toxic_column: str | None = None,
    neutral_column: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    split: str = "train",
) -> ContrastSet:
    """Load a contrast set from built-in texts, a file or a hub dataset.

    A table has either a toxic and a neutral column, which make pairs, or a text and a label column. The layout of
    RealToxicityPrompts is recognised: a text is a prompt followed by its continuation; it is toxic if either part is
    toxic, and neutral if both parts are neutral.

    Args:
        source: "builtin" (520 pairs written for toxloc), a CSV, TSV, JSON Lines or Parquet file, or the id of a hub
            dataset (`id:config` if it has several configurations).
        toxic_column: column of toxic texts; each row holds a pair. By default a column with a usual name ("toxic",
            ...).
        neutral_column: column of neutral texts. By default a column with a usual name (including those of ParaDetox).
        text_column: column of labelled texts. If it is given, the texts are read as labelled texts, not as pairs. By
            default a column with a usual name ("text", ...).
        label_column: column of labels: a class, or a toxicity score from 0 to 1, where at least .5 is toxic, at most
            .25 is neutral, and texts with scores in between are left out. By default a column with a usual name
            ("label", ...).
        split: split of a hub dataset to read.

    Raises:
        ToxlocError: the source cannot be read, lacks the columns, has no toxic or no neutral texts, or has a value of a
            wrong type in a column of texts or labels. Rows in which a text or a label is missing are left out.

    Example:
        >>> pairs = load_contrast("builtin")
        >>> len(pairs.toxic), pairs.paired
        (520, True)
    """
    if source == "builtin":
        rows = _built_in("contrast")
        return ContrastSet([r["toxic"] for r in rows], [r["neutral"] for r in rows], "builtin", paired=True)
    rows = read_rows(source, split)
    name = visible(Path(source).name)
    columns = list(rows[0])
    if any(is_realtoxicityprompts(row) for row in rows):
        return realtoxicityprompts_contrast(rows, name)
    toxic = find_column(columns, toxic_column, TOXIC_COLUMNS)
    neutral = find_column(columns, neutral_column, NEUTRAL_COLUMNS)
    if toxic and neutral and text_column is None:
        both = [(a, b) for a, b in zip(_cells(rows, toxic, name), _cells(rows, neutral, name), strict=True) if a and b]
        return ContrastSet([a for a, _ in both], [b for _, b in both], name, paired=True)
    text = find_column(columns, text_column, TEXT_COLUMNS)
    label = find_column(columns, label_column, LABEL_COLUMNS)
    if text and label:
        labels = [label_in(row, label, f"row {i} of {name}") for i, row in enumerate(rows)]
        labelled = [(t, y) for t, y in zip(_cells(rows, text, name), labels, strict=True) if t]
        return ContrastSet([t for t, y in labelled if y is True], [t for t, y in labelled if y is False], name)
    raise ToxlocError(
        f"{name} has the columns {columns_of(rows)}; a contrast set needs a toxic and a neutral column, or a text "
        "and a label column. Rename the columns, or name them in Python (toxic_column= and neutral_column=, or "
        "text_column= and label_column=)."
    )


def load_prompts(
    source: str = "builtin",
    *,
    which: str | None = None,
    text_column: str | None = None,
    language_column: str | None = None,
    category_column: str | None = None,
    words: int | None = None,
    split: str = "train",
) -> PromptSet:
    """Load openings for a model to complete from built-in texts, a file or a hub dataset.

    The layouts of RealToxicityPrompts, XSTest, RTP-LX and PolygloToxicityPrompts are recognised; see
    `toxloc.texts.layouts`, `toxloc.texts.requests` and `toxloc.texts.multilingual`.

    Args:
        source: "builtin" (130 provocative and 130 everyday openings written for toxloc), "sensitive" (90 harmless
            openings that mention identities, anger and illness; see `over_suppression`), "requests" (138 provocative,
            143 harmless and 78 borderline requests to a chat model, some of several turns, written for toxloc), a CSV,
            TSV, JSON Lines, Parquet or text file (one prompt per line), or the id of a hub dataset. A column `turns` or
            `messages` holds conversations (see `toxloc.texts.requests`).
        which: "all", "toxic", "nontoxic" or "challenging", to select prompts as evaluation protocols do. By default
            all prompts; of RealToxicityPrompts, by default the provocative prompts (marked as challenging or, if the
            file marks no prompt as challenging, with a toxicity of at least .5) and the everyday prompts (all other
            prompts with a toxicity below .5).
        text_column: column of prompts. By default a column with a usual name ("text", "prompt", ...). A column `kind`,
            if there is one, gives the kinds of the prompts. If this column, the language column or the category column
            is given, the layouts of RTP-LX and PolygloToxicityPrompts are not recognised.
        language_column: column of the languages of the prompts: codes such as "de" or "pt-BR", or English names. By
            default a column with a usual name ("language", "lang", "locale"). A missing language becomes "und".
        category_column: column of the categories of the prompts. By default the column `category`, if there is one. A
            missing category becomes "uncategorized".
        words: truncate longer texts to `words` words; drop shorter ones and duplicates. Use it to turn complete
            sentences into openings.
        split: split of a hub dataset to read.

    Raises:
        ToxlocError: `which` is unknown, `words` is less than 1, or the source cannot be read, lacks the column, has no
            such prompts, or has a prompt that is not a string or a language that is unknown. Rows without a prompt are
            left out.

    Example:
        >>> len(load_prompts("builtin").only("provocative"))
        130
    """
    if which not in (None, *SELECTIONS):
        raise ToxlocError(f"which={which!r}: choose one of {', '.join(SELECTIONS)}.")
    if words is not None:
        words = whole_number(words, "words", at_least=1)
    prompts = _read_prompts(source, which, text_column, language_column, category_column, split)
    return prompts if words is None else prompts.cut(words)


def _read_prompts(
    source: str, selection: str | None, text_column: str | None, language: str | None, category: str | None, split: str
) -> PromptSet:
    if source in tuple(BUILT_IN_PROMPTS):
        rows = _built_in(BUILT_IN_PROMPTS[source])
        if has_conversations(rows):
            return _select(conversations(rows, source), selection)
        return _select(PromptSet([r["text"] for r in rows], [r["kind"] for r in rows], None, source), selection)
    rows = read_rows(source, split)
    name, columns = visible(Path(source).name), list(rows[0])
    if has_conversations(rows):
        return _select(conversations(rows, name), selection)
    if any(isinstance(row.get("prompt"), dict) for row in rows):
        return realtoxicityprompts_prompts(rows, name, selection)
    if text_column is language is category is None:
        if is_xstest(rows):
            return _select(xstest(rows, name), selection)
        if any(is_rtp_lx(row) for row in rows):
            return rtp_lx_prompts(rows, name, selection)
        if any(is_polyglotoxicityprompts(row) for row in rows):
            return polyglotoxicityprompts(rows, name, selection)
    text = find_column(columns, text_column, TEXT_COLUMNS)
    if text is None:
        raise ToxlocError(
            f"{name} has the columns {columns_of(rows)}; give the name of the column of prompts as text_column=."
        )
    language = find_column(columns, language, LANGUAGE_COLUMNS)
    category = find_column(columns, category, CATEGORY_COLUMNS)
    kept = [
        (opening.rstrip(), row, f"row {i} of {name}")
        for i, (opening, row) in enumerate(zip(_cells(rows, text, name), rows, strict=True))
        if opening
    ]
    prompts = PromptSet(
        [opening for opening, _, _ in kept],
        [str(row["kind"]) for _, row, _ in kept] if "kind" in columns else None,
        name=name,
        languages=None if language is None else [language_in(row, language, where) for _, row, where in kept],
        categories=None if category is None else [category_in(row, category, where) for _, row, where in kept],
    )
    return _select(prompts, selection)


def load_neutral(
    source: str = "builtin",
    *,
    text_column: str | None = None,
    limit: int | None = 500,
    min_words: int = 8,
    seed: int = 0,
) -> NeutralText:
    """Load everyday text and split it into the parts fit, tune and check.

    Args:
        source: "builtin" (860 passages and comments written for toxloc), a text file (one passage per line; headings
            in the format of WikiText are left out), a table with a text column, or the id of a hub dataset.
        text_column: column of texts. By default a column with a usual name ("text", ...).
        limit: largest number of passages, drawn at random; of the built-in text, the first passages are taken. None
            for all passages.
        min_words: smallest number of words in a passage; shorter passages are dropped, except of the built-in text.
        seed: seed for the draw and the split.

    Raises:
        ToxlocError: the source cannot be read, lacks the column, has fewer than 12 different passages or has a passage
            that is not a string; `limit` is less than 12; or `min_words` or `seed` is not a whole number of 0 or more.

    Example:
        >>> neutral = load_neutral("builtin", limit=100)
        >>> len(neutral.fit), len(neutral.tune), len(neutral.check)
        (30, 35, 35)
    """
    if limit is not None:
        limit = whole_number(limit, "limit", at_least=MIN_TEXTS)
    min_words, seed = whole_number(min_words, "min_words"), whole_number(seed, "seed")
    if source == "builtin":
        return NeutralText.split([r["text"] for r in _built_in("neutral")][:limit], seed, "builtin")
    rows = read_rows(source)
    name = visible(Path(source).name)
    text = find_column(list(rows[0]), text_column, TEXT_COLUMNS)
    if text is None:
        raise ToxlocError(
            f"{name} has the columns {columns_of(rows)}; give the name of the column of texts as text_column=."
        )
    texts = [cell.strip() for cell in _cells(rows, text, name) if cell]
    texts = [t for t in texts if len(t.split()) >= min_words and not re.match(r"= .* =$", t)]
    texts = list(dict.fromkeys(texts))
    return NeutralText.split([texts[i] for i in shuffled(len(texts), seed)[:limit]], seed, name)


def _built_in(name: str) -> list[Row]:
    return read_records(ASSETS / "prompts" / f"{name}.jsonl")


def _cells(rows: list[Row], column: str, name: str) -> list[str | None]:
    """Return the texts of a column; None for a row without a text."""
    return [text_in(row, column, f"row {i} of {name}") for i, row in enumerate(rows)]


def _select(prompts: PromptSet, selection: str | None) -> PromptSet:
    """Select prompts by their kind, because they have no toxicity scores."""
    if selection in (None, "all"):
        return prompts
    chosen = prompts.only(EVERYDAY if selection == "nontoxic" else PROVOCATIVE)
    if chosen is None:
        raise ToxlocError(
            f"{prompts.name} marks no prompts as {selection}; add a column 'kind' with the values {PROVOCATIVE} and "
            f"{EVERYDAY}, or give prompts in the layout of RealToxicityPrompts."
        )
    return chosen
