"""Evaluators by name. The module imports no torch, so that wrong names are rejected quickly."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ...errors import ToxlocError
from ...support.arguments import as_list, check_kind
from ..verdicts import RESERVED
from .guard_presets import GUARDS

if TYPE_CHECKING:  # imports numpy, which checking names does not need
    from .base import Evaluator

DEFAULT = ("toxloc-rtp", "toxloc-guard", "profanity-check")
Function = Callable[[Sequence[str]], Sequence[float]]


@dataclass(frozen=True)
class Maker:
    """A named factory of an evaluator.

    Attributes:
        name: name by which users select the evaluator.
        make: function from the source after `NAME=`, or None, to the evaluator; it imports the class when called.
        source: whether a source is not accepted, optional or needed.
        needs: kind of source that is needed, for the message if it is missing.
        several: whether the name of the evaluator contains its source, so that several sources can be used together.
    """

    name: str
    make: Callable[[str | None], Evaluator]
    source: Literal["none", "optional", "needed"] = "none"
    needs: str = ""
    several: bool = False

    def check(self, source: str | None) -> None:
        """Raise ToxlocError if a source is given but not accepted, or needed but missing."""
        if source is not None and self.source == "none":
            raise ToxlocError(f"{self.name} takes no source; write {self.name}, not {self.name}={source}.")
        if not source and (self.source == "needed" or source is not None):
            raise ToxlocError(
                f"{self.name} needs {self.needs or 'a folder or hub id'}: write {self.name}=PATH or {self.name}=HUB-ID."
            )

    def __call__(self, source: str | None = None) -> Evaluator:
        """Make the evaluator."""
        self.check(source)
        return self.make(source)


def _guard(version: int | None = None) -> Maker:
    """Return the maker of toxloc-guard: of the newest version, or of the given one."""

    def make(source: str | None) -> Evaluator:
        from .guard import Guard

        return Guard() if version is None else Guard(version)

    return Maker("toxloc-guard" if version is None else f"toxloc-guard@{version}", make)


def _rtp(source: str | None) -> Evaluator:
    from .rtp import RTPJudge

    return RTPJudge()


def _profanity(source: str | None) -> Evaluator:
    from .profanity import ProfanityCheck

    return ProfanityCheck()


def _detoxify(variant: str) -> Maker:
    def make(source: str | None) -> Evaluator:
        from .detoxify import Detoxify

        return Detoxify(variant, source)

    return Maker(f"detoxify-{variant}", make, "optional")


def _published(
    name: str,
    hub: str,
    trained_on: str,
    blind_to: str,
    languages: Sequence[str] | None = None,
    unnamed: int | None = None,
) -> Maker:
    """Return the maker of a classifier on the hub."""

    def make(source: str | None) -> Evaluator:
        from .classifier import Classifier

        card = {"trained_on": trained_on, "blind_to": blind_to}
        return Classifier(source or hub, name=name, card=card, languages=languages, unnamed=unnamed)

    return Maker(name, make, "optional")


def _classifier(source: str | None) -> Evaluator:
    from .classifier import Classifier

    assert source is not None
    return Classifier(source)


def _instruct(source: str | None) -> Evaluator:
    from .llm import LLMJudge

    assert source is not None
    return LLMJudge(source)


def _guard_model(name: str) -> Maker:
    """Return the maker of a guard model."""

    def make(source: str | None) -> Evaluator:
        from .guard_judge import GuardJudge

        return GuardJudge(name, source)

    return Maker(name, make, "optional", several=True)


EVALUATORS: dict[str, Maker] = {
    maker.name: maker
    for maker in (
        Maker("toxloc-rtp", _rtp),
        _guard(),
        Maker("profanity-check", _profanity),
        _guard(1),
        _detoxify("original"),
        _detoxify("unbiased"),
        _detoxify("multilingual"),
        _published(
            "roberta-toxicity",
            "s-nlp/roberta_toxicity_classifier",
            "comments of the three Jigsaw challenges, in English",
            "implicit hate; the classifier of the ml-aura and ml-act protocols",
            ("en",),
        ),
        _published(
            "dynabench-hate",
            "facebook/roberta-hate-speech-dynabench-r4-target",
            "four rounds of hate speech written to fool the previous model (Vidgen et al. 2021)",
            "profanity and insults that are not hate",
            ("en",),
        ),
        _published(
            "textdetox-xlmr",
            "textdetox/xlmr-large-toxicity-classifier",
            "textdetox/multilingual_toxicity_dataset, comments in nine languages",
            "implicit hate; less exact for Chinese, Arabic and Amharic, by its model card",
            ("en", "ru", "uk", "es", "de", "am", "ar", "zh", "hi"),
            unnamed=1,
        ),
        _published(
            "textdetox-xlmr-v2",
            "textdetox/xlmr-large-toxicity-classifier-v2",
            "see its model card",
            "implicit hate",
            unnamed=1,
        ),
        _published(
            "textdetox-bert",
            "textdetox/bert-multilingual-toxicity-classifier",
            "comments in fifteen languages, one of them Hinglish, which has no code",
            "implicit hate",
            ("en", "fr", "it", "es", "ru", "uk", "tt", "ar", "hi", "ja", "zh", "he", "am", "de"),
            unnamed=1,
        ),
        Maker("classifier", _classifier, "needed", "a sequence classifier", several=True),
        Maker("instruct", _instruct, "needed", "a language model to ask", several=True),
        *map(_guard_model, GUARDS),
    )
}


@dataclass(frozen=True)
class Wanted:
    """An evaluator as users write it: NAME, NAME=SOURCE, NAME@THRESHOLD or NAME=SOURCE@THRESHOLD.

    The name of toxloc-guard may end with its version: toxloc-guard@1 is a name, and toxloc-guard@1@0.9 is that name
    with a threshold.

    Attributes:
        maker: maker of the evaluator.
        source: folder, file or hub id; None if none was given.
        threshold: a text is toxic if its score is at least this threshold; None for the evaluator's default threshold.
    """

    maker: Maker
    source: str | None
    threshold: float | None

    @classmethod
    def parse(cls, text: str) -> Wanted:
        """Parse the text that a user wrote.

        Raises:
            ToxlocError: the name is unknown, the source is missing or not accepted, or the threshold is out of range.

        Example:
            >>> Wanted.parse("classifier=path/to/folder@0.8").threshold
            0.8
        """
        match = None if text in EVALUATORS else re.fullmatch(r"(.+?)(?:@(\d*\.?\d+))?", text, re.S)
        spec, threshold = match.groups() if match else (text, None)
        name, equals, source = spec.partition("=")
        if name not in EVALUATORS:
            raise ToxlocError(f"There is no evaluator {name!r}; choose one of {', '.join(EVALUATORS)}.")
        maker = EVALUATORS[name]
        maker.check(source if equals else None)
        if threshold is not None and not 0 < float(threshold) <= 1:
            raise ToxlocError(
                f"{text!r}: the threshold {threshold} is out of range; give a number above 0 and at most 1."
            )
        return cls(maker, source if equals else None, None if threshold is None else float(threshold))

    def make(self) -> Evaluator:
        """Make the evaluator, with the given threshold if there is one."""
        evaluator = self.maker(self.source)
        if self.threshold is not None:
            evaluator.threshold = self.threshold
            evaluator.card = evaluator.card | {"calibration": "none; the user set the threshold"}
        return evaluator


def check_evaluator_names(names: Sequence[str]) -> None:
    """Check the names of evaluators, without loading anything.

    Raises:
        ToxlocError: there are no names, a name occurs twice, or `Wanted.parse` fails. If a name is missing or unknown,
            the message lists the known names.

    Example:
        >>> check_evaluator_names(["toxloc-guard", "profanity-check@0.7"])
    """
    names = as_list(names, "the evaluators")
    if not names:
        raise ToxlocError(f"At least one evaluator is needed; choose from {', '.join(EVALUATORS)}.")
    wanted = [Wanted.parse(name) for name in names]
    # Names that depend on the source are compared by `get_evaluators`.
    _check_different([item.maker.name for item in wanted if not (item.maker.several and item.source)])


def get_evaluators(wanted: Sequence[str | Evaluator]) -> list[Evaluator]:
    """Make evaluators from their names, and load them. Items that are evaluators already are only loaded.

    A name may be followed by `=` and a folder, file or hub id to load it from, and by `@` and a threshold:
    "detoxify-original=path/to/folder", "classifier=path/to/folder@0.8", "profanity-check@0.7".

    Raises:
        ToxlocError: there are no evaluators, a name is unknown or occurs twice, or an evaluator cannot be loaded.

    Example:
        >>> [(e.name, e.threshold) for e in get_evaluators(["profanity-check@0.7"])]
        [('profanity-check', 0.7)]
    """
    from .base import Evaluator

    wanted = as_list(wanted, "the evaluators")
    if not wanted:
        raise ToxlocError(f"At least one evaluator is needed; choose from {', '.join(EVALUATORS)}.")
    parsed = [Wanted.parse(item) if isinstance(item, str) else item for item in wanted]
    for item in parsed:
        if not isinstance(item, Wanted):
            check_kind(item, Evaluator, "an evaluator")
    evaluators = [item.make() if isinstance(item, Wanted) else item for item in parsed]
    _check_different([evaluator.name for evaluator in evaluators])
    for evaluator in evaluators:
        evaluator.prepare()
    return evaluators


def register(name: str, threshold: float = 0.5) -> Callable[[Function], Function]:
    """Register a function, from texts to scores from 0 to 1, as an evaluator with a name; used as a decorator.

    Args:
        name: name of the evaluator.
        threshold: a text is toxic if its score is at least this threshold.

    Raises:
        ToxlocError: another evaluator has that name, or the name is reserved ("any", "all", "both").

    Example:
        >>> @register("shouting")
        ... def shouting(texts): return [float(text.isupper()) for text in texts]
        >>> get_evaluators(["shouting"])[0].score(["HEY"])["toxicity"]
        array([1.])
    """
    if name in EVALUATORS:
        raise ToxlocError(f"There is an evaluator {name!r} already; choose another name.")
    _check_different([name])

    def add(function: Function) -> Function:
        from .base import FunctionEvaluator

        EVALUATORS[name] = Maker(name, lambda source: FunctionEvaluator(name, function, threshold))
        return function

    return add


def _check_different(names: Sequence[str]) -> None:
    if len(set(names)) < len(names) or set(RESERVED) & set(names):
        reserved = ", ".join(map(repr, RESERVED))
        raise ToxlocError(
            f"Evaluators need different names, and the names {reserved} are reserved; got {', '.join(names)}."
        )
