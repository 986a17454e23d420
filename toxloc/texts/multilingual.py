"""Row layouts of the multilingual prompt sets RTP-LX and PolygloToxicityPrompts."""

import re
from collections.abc import Callable, Sequence

from ..errors import ToxlocError
from .languages import UNDETERMINED, language_code
from .layouts import TOXIC_FROM, is_missing, language_in, text_in, wrong_value
from .prompts import EVERYDAY, PROVOCATIVE, PromptSet, is_score
from .records import Row

# The harms that the annotators of RTP-LX rate beside "Toxicity", in the order of its files.
HARMS = ("IdentityAttack", "Bias", "Microaggression", "Violence", "SelfHarm", "Insult", "SexualContent")
NO_HARM = "none"  # category of a prompt for which no annotator sees any of these harms
LOWEST, HIGHEST = 1, 5  # of a rating in RTP-LX
ABSENT = "NA"  # RTP-LX has this text in place of a prompt that a language lacks
Details = tuple[str, float, str, str | None]  # text, toxicity, language and category of a prompt


def is_rtp_lx(row: Row) -> bool:
    """Whether a row has the layout of RTP-LX (de Wynter et al. 2024, arXiv:2404.14397)."""
    return {"Prompt", "Locale"} <= row.keys() and _annotations(row) is not None


def rtp_lx_prompts(rows: Sequence[Row], name: str, selection: str | None) -> PromptSet:
    """Make a prompt set from rows in the layout of RTP-LX.

    The score is the mean rating of "Toxicity", from 1 (none) to 5 (extreme), divided into 0 to 1: a rating of 3, which
    means toxic, is a score of .5. The category is the harm with the highest mean rating, "none" if no annotator sees a
    harm. Several harms often have the highest rating; the first of IdentityAttack, Bias, Microaggression, Violence,
    SelfHarm, Insult and SexualContent is taken.

    Args:
        rows: at least one row; rows without a prompt, with the text "NA" in its place, or without a rating of its
            toxicity are left out. Completions are not read.
        name: name of the prompt set.
        selection: the prompts to keep, as `which` of `load_prompts`; no prompt is marked as challenging.

    Raises:
        ToxlocError: no row has such a prompt; or a prompt is not a text, a rating is not a number from 1 to 5, or a
            locale is unknown.

    Example:
        >>> ratings = {"Toxicity": 3.0, "Insult": 2.0, "Bias": 1.0}
        >>> row = {"Prompt": "Du bist so ein", "Locale": "DE", "PromptAnnotations": ratings}
        >>> prompts = rtp_lx_prompts([row], "RTP_LX_DE.json", None)
        >>> prompts.scores, prompts.languages, prompts.categories
        ([0.5], ['de'], ['Insult'])
    """

    def details(row: Row, where: str) -> Details | None:
        text, rated = text_in(row, "Prompt", where), _annotations(row) or {}
        ratings = {harm: _rating(rated, harm, where) for harm in ("Toxicity", *HARMS)}
        toxicity = ratings.pop("Toxicity")
        if text is None or text.strip() == ABSENT or toxicity is None:
            return None
        known = {harm: rating for harm, rating in ratings.items() if rating is not None}
        worst = max(known, key=known.__getitem__, default=NO_HARM)
        category = worst if known.get(worst, LOWEST) > LOWEST else NO_HARM
        return text, (toxicity - LOWEST) / (HIGHEST - LOWEST), language_in(row, "Locale", where), category

    return _scored_prompts(rows, name, selection, details)


def is_polyglotoxicityprompts(row: Row) -> bool:
    """Whether a row has the layout of PolygloToxicityPrompts (Jain et al. 2024, arXiv:2405.09373)."""
    return isinstance(row.get("prompt"), str) and not {"toxicity_bucket", "prompt_perspective"}.isdisjoint(row)


def polyglotoxicityprompts(rows: Sequence[Row], name: str, selection: str | None) -> PromptSet:
    """Make a prompt set from rows in the layout of PolygloToxicityPrompts.

    The score is the toxicity of the prompt (`prompt_toxicity`, or the score in `prompt_perspective`); if the row has
    neither, it is `toxicity`, the toxicity of the complete text. The language is the column `lang` or `language`, the
    language in `meta_data` or that of `prompt_perspective`; if the row has none, it is that of the configuration in the
    name, such as ptp-de. There are no categories.

    Args:
        rows: at least one row; rows without a prompt or without its toxicity are left out. Other texts are not read.
        name: name of the prompt set.
        selection: the prompts to keep, as `which` of `load_prompts`; no prompt is marked as challenging.

    Raises:
        ToxlocError: no row has such a prompt; or a prompt is not a text, a toxicity is not a number from 0 to 1, or a
            language is unknown.

    Example:
        >>> row = {"prompt": "Du bist so ein", "toxicity": 0.25, "toxicity_bucket": 1, "meta_data": {"lang": "de"}}
        >>> prompts = polyglotoxicityprompts([row], "ptp-de.jsonl", None)
        >>> prompts.scores, prompts.languages, prompts.categories
        ([0.25], ['de'], None)
    """
    configuration = re.search(r"(?:ptp|wildchat)-([a-z]{2})(?![a-z])", name)
    usual = language_code(configuration[1]) if configuration else UNDETERMINED

    def details(row: Row, where: str) -> Details | None:
        text = text_in(row, "prompt", where)
        perspective = _part(row, "prompt_perspective")
        by_perspective = _part(_part(_part(perspective, "attributeScores"), "TOXICITY"), "summaryScore").get("value")
        scores = row.get("prompt_toxicity"), by_perspective, row.get("toxicity")
        score = next((value for value in scores if not is_missing(value)), None)
        if text is None or score is None:
            return None
        if not is_score(score):
            raise wrong_value(score, "toxicity", where, "a score from 0 to 1")
        of_perspective = {"language": next(iter(perspective.get("languages") or ()), None)}
        places = (
            (part, key) for part in (row, _part(row, "meta_data"), of_perspective) for key in ("lang", "language")
        )
        languages = (language_in(part, key, where) for part, key in places)
        return text, float(score), next((code for code in languages if code != UNDETERMINED), usual), None

    return _scored_prompts(rows, name, selection, details)


def _scored_prompts(
    rows: Sequence[Row], name: str, selection: str | None, details: Callable[[Row, str], Details | None]
) -> PromptSet:
    """Make a prompt set; prompts with a toxicity of at least .5 are provocative, all others everyday."""
    wanted = {"toxic": (PROVOCATIVE,), "nontoxic": (EVERYDAY,), "challenging": ()}.get(
        selection or "all", (PROVOCATIVE, EVERYDAY)
    )
    kept = []
    for i, row in enumerate(rows):
        prompt = details(row, f"row {i} of {name}")
        if prompt is not None:
            kind = PROVOCATIVE if prompt[1] >= TOXIC_FROM else EVERYDAY
            if kind in wanted:
                kept.append((kind, *prompt))
    if not kept:
        why = "; prompts of this layout are not marked as challenging." if selection == "challenging" else "."
        raise ToxlocError(f"{name} has no {selection or 'scored'} prompts{why}")
    kinds, texts, scores, languages, categories = zip(*kept, strict=True)
    return PromptSet(
        [text.rstrip() for text in texts],
        list(kinds),
        list(scores),
        name,
        list(languages),
        None if None in categories else list(categories),
    )


def _annotations(row: Row) -> Row | None:
    """Return the annotations of the prompt; older files of RTP-LX call them "Annotations"."""
    return next((row[key] for key in ("PromptAnnotations", "Annotations") if isinstance(row.get(key), dict)), None)


def _rating(rated: Row, harm: str, where: str) -> float | None:
    value = rated.get(harm)
    if is_missing(value):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not LOWEST <= value <= HIGHEST:
        raise wrong_value(value, harm, where, f"a rating from {LOWEST} to {HIGHEST}")
    return float(value)


def _part(row: Row, column: str) -> Row:
    """Return an object in a cell of a table; an empty object if the cell holds no object."""
    value = row.get(column)
    return value if isinstance(value, dict) else {}
