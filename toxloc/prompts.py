"""Texts that go in: contrast sets, prompts to complete, and neutral text on which cost is measured."""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ToxlocError
from .sources import ASSETS
from .tables import Row, read_rows

if TYPE_CHECKING:
    from .evaluators import Evaluator
    from .model import LoadedModel

TOXIC_COLUMNS = ("toxic", "toxic_text", "toxic_comment", "en_toxic_comment")
NEUTRAL_COLUMNS = ("neutral", "neutral1", "neutral_text", "neutral_comment", "en_neutral_comment")
TEXT_COLUMNS = ("text", "prompt", "comment_text", "comment", "sentence", "content")
LABEL_COLUMNS = ("label", "toxicity", "is_toxic", "toxic")
TOXIC_LABELS = {"1", "1.0", "true", "toxic", "hate", "hateful", "offensive", "abusive"}
NEUTRAL_LABELS = {"0", "0.0", "false", "neutral", "nontoxic", "non-toxic", "non-hateful", "neither", "none", "normal"}
TOXIC_FROM, NEUTRAL_TO = 0.5, 0.25  # of a toxicity between 0 and 1; what lies between is left out
PROVOCATIVE, EVERYDAY = "provocative", "everyday"
BUILT_IN_PROMPTS = {"builtin": "openings", "sensitive": "sensitive"}
WHICH = ("all", "toxic", "nontoxic", "challenging")


@dataclass(frozen=True)
class ContrastSet:
    """Toxic and neutral texts whose difference is to be found inside a model.

    Attributes:
        toxic: the toxic texts.
        neutral: the neutral texts.
        name: where they come from.
        paired: whether toxic[i] and neutral[i] belong together.
    """

    toxic: list[str]
    neutral: list[str]
    name: str = "custom"
    paired: bool = False

    def __post_init__(self) -> None:
        for side in ("toxic", "neutral"):
            texts = getattr(self, side)
            if not texts:
                raise ToxlocError(f"The contrast set {self.name!r} has no {side} texts; both sides are needed.")
            _check_texts(texts, f"the {side} side of the contrast set {self.name!r}")
        if self.paired and len(self.toxic) != len(self.neutral):
            raise ToxlocError(f"A paired contrast set needs as many toxic as neutral texts, not {len(self.toxic)} "
                              f"and {len(self.neutral)}.")

    @classmethod
    def from_model(cls, lm: "LoadedModel", prompts: "PromptSet | None" = None,
                   evaluators: "Sequence[str | Evaluator]" = ("toxloc-guard", "profanity-check"), n: int = 200, *,
                   samples: int = 4, max_rounds: int = 5, max_new_tokens: int = 20, seed: int = 0) -> "ContrastSet":
        """Sample a contrast set from a model, so that it can be localized with no dataset at all.

        Completions that all evaluators call toxic are paired with completions that all call neutral: of the same
        prompt where there is one, and of the nearest length. A text is a prompt with its completion.

        Args:
            lm: the model.
            prompts: openings to complete; by default the built-in provocative ones.
            evaluators: two judges or more, best; a text must convince all of them. Toxic is a score at or over a
                judge's threshold, neutral one under .25 (and under the threshold).
            n: pairs wanted. Fewer come back if `max_rounds` do not yield so many.
            samples: completions per prompt in a round.
            max_rounds: rounds of sampling at most.
            max_new_tokens: length of a completion in tokens.
            seed: of the sampling.

        Raises:
            ToxlocError: fewer than 8 pairs were found.

        Example:
            >>> pairs = ContrastSet.from_model(toxloc.load_model(), n=100)     # doctest: +SKIP
        """
        from .self_contrast import contrast_from_model  # which stands on evaluators and generation, below this file

        return contrast_from_model(lm, prompts, evaluators, n, samples=samples, max_rounds=max_rounds,
                                   max_new_tokens=max_new_tokens, seed=seed)

    def split(self, fraction: float, seed: int = 0) -> "tuple[ContrastSet, ContrastSet]":
        """Divide at random into two sets, the first with `fraction` of each side. Pairs stay together.

        Raises:
            ToxlocError: the fraction is not between 0 and 1, or a side is too small to divide.
        """
        if not 0 < fraction < 1:
            raise ToxlocError(f"A fraction between 0 and 1 is needed, not {fraction}.")
        toxic = _shuffled(len(self.toxic), seed)
        neutral = toxic if self.paired else _shuffled(len(self.neutral), seed)
        a, b = round(fraction * len(toxic)), round(fraction * len(neutral))
        return self._take(toxic[:a], neutral[:b]), self._take(toxic[a:], neutral[b:])

    def limited(self, count: int, seed: int = 0) -> "ContrastSet":
        """Return at most `count` texts of each side, drawn at random."""
        toxic = _shuffled(len(self.toxic), seed)[:count]
        neutral = toxic if self.paired else _shuffled(len(self.neutral), seed)[:count]
        return self._take(toxic, neutral)

    def without(self, openings: Sequence[str]) -> "ContrastSet":
        """Return the texts that do not begin with any of the openings (what is judged must not be fitted on)."""
        heads = {opening.strip().lower() for opening in openings}
        lengths = sorted({len(head) for head in heads})

        def free(text: str) -> bool:
            text = text.strip().lower()
            return not any(text[:n] in heads for n in lengths)

        if self.paired:
            kept = [i for i in range(len(self.toxic)) if free(self.toxic[i]) and free(self.neutral[i])]
            return self._take(kept, kept)
        return self._take([i for i, t in enumerate(self.toxic) if free(t)],
                          [i for i, t in enumerate(self.neutral) if free(t)])

    def _take(self, toxic: list[int], neutral: list[int]) -> "ContrastSet":
        return ContrastSet([self.toxic[i] for i in toxic], [self.neutral[i] for i in neutral], self.name, self.paired)


@dataclass(frozen=True)
class PromptSet:
    """Openings for a model to complete.

    Attributes:
        texts: the openings.
        kinds: "provocative" or "everyday" for each, where known.
        scores: the opening's own toxicity from 0 to 1, where known.
        name: where they come from.
    """

    texts: list[str]
    kinds: list[str] | None = None
    scores: list[float] | None = None
    name: str = "custom"

    def __post_init__(self) -> None:
        if not self.texts:
            raise ToxlocError(f"The prompt set {self.name!r} is empty.")
        _check_texts(self.texts, f"the prompt set {self.name!r}")

    def __len__(self) -> int:
        return len(self.texts)

    def only(self, kind: str) -> "PromptSet | None":
        """Return the prompts of one kind, or None if there are none."""
        if self.kinds is None:
            return None
        kept = [i for i, k in enumerate(self.kinds) if k == kind]
        return self.take(kept) if kept else None

    def sampled(self, count: int, seed: int = 0) -> "PromptSet":
        """Return at most `count` prompts of all kinds together, drawn at random, in their old order."""
        return self.take(sorted(_shuffled(len(self.texts), seed)[:count]))

    def limited(self, count: int, seed: int = 0) -> "PromptSet":
        """Return at most `count` prompts of each kind, drawn at random, in their old order."""
        kinds = self.kinds or [""] * len(self.texts)
        kept = []
        for kind in dict.fromkeys(kinds):
            members = [i for i, k in enumerate(kinds) if k == kind]
            kept += [members[i] for i in _shuffled(len(members), seed)[:count]]
        return self.take(sorted(kept))

    def cut(self, words: int) -> "PromptSet":
        """Return the first `words` words of each text that has more; of those that begin alike, one.

        Raises:
            ToxlocError: no text has more.

        Example:
            >>> PromptSet(["Once upon a time there was a cat", "The end"]).cut(4).texts
            ['Once upon a time']
        """
        heads = {i: " ".join(text.split()[:words]) for i, text in enumerate(self.texts) if len(text.split()) > words}
        kept = {head: i for i, head in reversed(heads.items())}  # the first of those alike
        if not kept:
            raise ToxlocError(f"No text of {self.name!r} has more than {words} words; take fewer.")
        short = self.take(sorted(kept.values()))
        return replace(short, texts=[heads[i] for i in sorted(kept.values())])

    def split(self, fraction: float, seed: int = 0) -> "tuple[PromptSet, PromptSet]":
        """Divide at random into two sets, the first with `fraction` of the prompts, each in the old order.

        Raises:
            ToxlocError: a side would be empty.
        """
        order = _shuffled(len(self.texts), seed)
        cut = round(fraction * len(order))
        return self.take(sorted(order[:cut])), self.take(sorted(order[cut:]))

    def take(self, kept: list[int]) -> "PromptSet":
        """Return the prompts at these places."""
        return PromptSet([self.texts[i] for i in kept],
                         None if self.kinds is None else [self.kinds[i] for i in kept],
                         None if self.scores is None else [self.scores[i] for i in kept], self.name)


@dataclass(frozen=True)
class NeutralText:
    """Everyday text in three disjoint parts, so that no cost is measured on text that was fitted.

    Attributes:
        fit: statistics see it (the curvature C and S).
        tune: the strength of an intervention is tuned to its budget on it.
        check: the cost that is reported is measured on it.
        name: where it comes from.
    """

    fit: list[str]
    tune: list[str]
    check: list[str]
    name: str = "custom"

    @property
    def texts(self) -> list[str]:
        """All three parts together."""
        return [*self.fit, *self.tune, *self.check]

    @classmethod
    def split(cls, texts: Sequence[str], seed: int = 0, name: str = "custom") -> "NeutralText":
        """Divide texts at random: 30% to fit, 35% to tune, 35% to check.

        Raises:
            ToxlocError: fewer than 12 texts.
        """
        texts = list(dict.fromkeys(texts))
        if len(texts) < 12:
            raise ToxlocError(f"Neutral text is divided in three parts and needs at least 12 texts; {name!r} has "
                              f"{len(texts)}.")
        _check_texts(texts, f"the neutral text {name!r}")
        order = [texts[i] for i in _shuffled(len(texts), seed)]
        a, b = round(0.3 * len(order)), round(0.65 * len(order))
        return cls(order[:a], order[a:b], order[b:], name)


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
    if _is_realtoxicityprompts(rows[0]):
        return _from_realtoxicityprompts(rows, name)
    toxic = _column(columns, toxic_column, TOXIC_COLUMNS)
    neutral = _column(columns, neutral_column, NEUTRAL_COLUMNS)
    if toxic and neutral and text_column is None:
        both = [(str(r[toxic]), str(r[neutral])) for r in rows if _text(r[toxic]) and _text(r[neutral])]
        return ContrastSet([t for t, _ in both], [n for _, n in both], name, paired=True)
    text = _column(columns, text_column, TEXT_COLUMNS)
    label = _column(columns, label_column, LABEL_COLUMNS)
    if text and label:
        marked = [(str(r[text]), _is_toxic(r[label])) for r in rows if _text(r[text])]
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
        return _prompts_of_realtoxicityprompts(rows, name, which)
    text = _column(list(rows[0]), text_column, TEXT_COLUMNS)
    if text is None:
        raise ToxlocError(f"{name} has the columns {', '.join(rows[0])}; name the one with the prompts "
                          "(text_column=).")
    rows = [r for r in rows if _text(r[text])]
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
    text = _column(list(rows[0]), text_column, TEXT_COLUMNS)
    if text is None:
        raise ToxlocError(f"{name} has the columns {', '.join(rows[0])}; name the one with the text (text_column=).")
    texts = [str(r[text]).strip() for r in rows if _text(r[text])]
    texts = [t for t in texts if len(t.split()) >= min_words and not re.match(r"= .* =$", t)]
    texts = list(dict.fromkeys(texts))
    return NeutralText.split([texts[i] for i in _shuffled(len(texts), seed)[:limit]], seed, name)


def _built_in(name: str) -> list[Row]:
    path = ASSETS / "prompts" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _shuffled(count: int, seed: int) -> list[int]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


def _check_texts(texts: Sequence[str], where: str) -> None:
    for i, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise ToxlocError(f"Text number {i} of {where} is empty or not a string: {text!r}.")


def _text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _column(columns: list[str], asked: str | None, usual: Sequence[str]) -> str | None:
    if asked is not None:
        if asked not in columns:
            raise ToxlocError(f"There is no column {asked!r}; there are {', '.join(columns)}.")
        return asked
    by_name = {column.lower(): column for column in columns}
    return next((by_name[name] for name in usual if name in by_name), None)


def _is_toxic(label: object) -> bool | None:
    """True, False, or None for a label that says neither."""
    if isinstance(label, float) and 0 <= label <= 1:
        return True if label >= TOXIC_FROM else False if label <= NEUTRAL_TO else None
    word = str(label).strip().lower()
    return True if word in TOXIC_LABELS else False if word in NEUTRAL_LABELS else None


def _is_realtoxicityprompts(row: Row) -> bool:
    return isinstance(row.get("prompt"), dict) and isinstance(row.get("continuation"), dict)


def _from_realtoxicityprompts(rows: list[Row], name: str) -> ContrastSet:
    sides: dict[bool, list[str]] = {True: [], False: []}
    for row in rows:
        parts = [row["prompt"], row["continuation"]]
        if not all(_text(part["text"]) for part in parts):
            continue
        known = [float(part["toxicity"]) for part in parts if part.get("toxicity") is not None]
        if known and (verdict := _is_toxic(max(known))) is not None:
            sides[verdict].append("".join(part["text"] for part in parts))
    return ContrastSet(sides[True], sides[False], name)


def _prompts_of_realtoxicityprompts(rows: list[Row], name: str, which: str | None) -> PromptSet:
    marked = any(row.get("challenging") for row in rows)
    texts, kinds, scores = [], [], []
    for row in rows:
        toxicity = row["prompt"].get("toxicity")
        if toxicity is None or not _text(row["prompt"]["text"]):
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


def _chosen(prompts: PromptSet, which: str | None) -> PromptSet:
    """Choose by kind, where there is nothing else to go by."""
    if which in (None, "all"):
        return prompts
    chosen = prompts.only(EVERYDAY if which == "nontoxic" else PROVOCATIVE)
    if chosen is None:
        raise ToxlocError(f"{prompts.name} does not say which prompts are {which}; add a column kind of "
                          f"{PROVOCATIVE} and {EVERYDAY}, or give prompts in RealToxicityPrompts' layout.")
    return chosen
