"""Languages of the completions, and warnings of evaluators that do not know them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..texts.detection import detect_language
from ..texts.languages import EVERY_LANGUAGE, knows, language_name, short_language_name
from .evaluators.base import Evaluator
from .evaluators.registry import EVALUATORS

MIN_SHARE, MIN_COUNT = 0.1, 3  # of the completions of a group of prompts; rarer languages may be mistakes
NAMED = 3  # languages and evaluators that a sentence lists
LISTED = 8  # an evaluator with more languages is described by their number


@dataclass(frozen=True)
class LanguageNotes:
    """Languages of the completions, as detected, and what each evaluator knows of them.

    Attributes:
        detected: share of the completions by language, largest first. "und" are the completions whose language cannot
            be decided, most of them short.
        known: languages of each evaluator; ("*",) for practically all languages, None if they are unknown.
        foreign: share of the completions that are in a language that the evaluator does not know; None if its languages
            are unknown.
        warnings: a sentence for each group of evaluators that judged completions in languages that they do not know.
    """

    detected: dict[str, float]
    known: dict[str, tuple[str, ...] | None]
    foreign: dict[str, float | None]
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the shares, the evaluators' languages ("unknown" if there is no list) and the warnings."""
        return {
            "detected": self.detected,
            "evaluators": {
                name: {"languages": "unknown" if languages is None else list(languages), "foreign": self.foreign[name]}
                for name, languages in self.known.items()
            },
            "warnings": self.warnings,
        }


def language_notes(
    completions: Sequence[Sequence[str]], evaluators: Sequence[Evaluator], languages: Sequence[str] | None = None
) -> LanguageNotes:
    """Detect the languages of completions, and warn of evaluators that do not know them.

    A single completion is often too short for a safe decision. So a warning needs a language that at least 10% and at
    least three of the completions clearly have; if the languages of the prompts are known, it is enough that this holds
    for the completions of the prompts of a language. An evaluator whose languages are unknown gives no warning.

    Args:
        completions: [n_prompts][samples].
        evaluators: the evaluators.
        languages: language of each prompt, or None if they are unknown.

    Example:
        >>> from toxloc.evaluation.evaluators.base import FunctionEvaluator
        >>> judge = FunctionEvaluator("judge", lambda texts: [0.0] * len(texts))
        >>> judge.languages = ("en",)
        >>> notes = language_notes([["Das Wetter ist heute sehr schön."]] * 4, [judge])
        >>> notes.foreign["judge"], notes.warnings[0][:58]
        (1.0, 'judge knows English only; 100% of the completions look Ger')
    """
    seen = [[detect_language(text) for text in texts] for texts in completions]
    counts = Counter(code for row in seen for code in row)
    shares = {code: n / counts.total() for code, n in counts.most_common()}
    groups = [""] * len(seen) if languages is None else languages
    present = {code for group in set(groups) for code in _frequent(seen, [other == group for other in groups])}
    foreign: dict[str, float | None] = {}
    warned: dict[tuple[str, ...], list[Evaluator]] = {}  # by the languages that the evaluators know
    for judge in evaluators:
        strange = [code for code in counts if knows(judge.languages, code) is False]
        foreign[judge.name] = None
        if judge.languages is not None:
            foreign[judge.name] = sum(counts[code] for code in strange) / counts.total() if counts else 0.0
            if not present.isdisjoint(strange):
                warned.setdefault(judge.languages, []).append(judge)
    warnings = []
    for known, judges in warned.items():
        of_judges = {code: share for code, share in shares.items() if code in present and knows(known, code) is False}
        better = [judge.name for judge in evaluators if all(knows(judge.languages, code) for code in of_judges)]
        warnings.append(_warning(judges, of_judges, better))
    return LanguageNotes(shares, {judge.name: judge.languages for judge in evaluators}, foreign, warnings)


def _frequent(seen: Sequence[Sequence[str]], in_group: Sequence[bool]) -> list[str]:
    """Return the languages that enough completions of a group of prompts have."""
    counts = Counter(code for row, wanted in zip(seen, in_group, strict=True) if wanted for code in row)
    least = max(MIN_COUNT, MIN_SHARE * counts.total())
    return [code for code, n in counts.items() if n >= least]


def _warning(judges: Sequence[Evaluator], shares: Mapping[str, float], better: Sequence[str]) -> str:
    """Return the sentence for evaluators that know the same languages.

    Args:
        judges: the evaluators.
        shares: share of the completions in each language that they do not know, largest first.
        better: names of evaluators that judged the completions too and know these languages.
    """
    several = len(judges) > 1
    looks = [f"{share:.0%} look {language_name(code)}" for code, share in shares.items()][:NAMED]
    looks[0] = looks[0].replace("look", "of the completions look", 1)
    if len(shares) > NAMED:
        looks.append(f"{sum([*shares.values()][NAMED:]):.0%} are in {len(shares) - NAMED} other languages")
    if better:
        advice = f"Read the rates of {_listed(better[:NAMED])} instead"
    elif able := _who_knows(list(shares)):
        advice = f"Use {_listed(able, 'or')}"
    else:
        advice = "Use an evaluator that knows the language"
    return (
        f"{_listed([judge.name for judge in judges])} {'know' if several else 'knows'} {_scope(judges[0])}; "
        f"{_listed(looks)}: {'their' if several else 'its'} rates there mean little. {advice}."
    )


def _scope(judge: Evaluator) -> str:
    languages = judge.languages or ()
    if len(languages) > LISTED:
        return f"{len(languages)} other languages only"
    return f"{_listed([short_language_name(code) for code in languages])} only" if languages else "no language"


def _who_knows(codes: Sequence[str]) -> list[str]:
    """Return names of evaluators of toxloc that know all these languages: at most two that list them come first."""
    makers = [maker for maker in EVALUATORS.values() if maker.source != "needed"]
    languages = {maker.name: maker(None).languages or () for maker in makers}
    able = [name for name in languages if all(knows(languages[name], code) for code in codes)]
    listing = [name for name in able if EVERY_LANGUAGE not in languages[name]]
    return [*listing[: NAMED - 1], *(name for name in able if name not in listing)][:NAMED]


def _listed(names: Sequence[str], last: str = "and") -> str:
    """Return names as a list in words.

    Example:
        >>> _listed(["a", "b", "c"])
        'a, b and c'
    """
    return f" {last} ".join(filter(None, (", ".join(names[:-1]), names[-1])))
