"""Evaluators by name; importable without torch, so that wrong names are refused at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ...errors import ToxlocError
from ..verdicts import RESERVED

if TYPE_CHECKING:  # numpy, which checking names does not need
    from .base import Evaluator

DEFAULT = ("toxloc-guard", "profanity-check")
Function = Callable[[Sequence[str]], Sequence[float]]


@dataclass(frozen=True)
class Maker:
    """How an evaluator of a name is made.

    Attributes:
        name: the name that users give.
        make: makes the evaluator from the source after `NAME=`, or from None; imports its class only then.
        source: whether a source may or must be given.
        needs: what the source is, for the message if it is missing.
    """

    name: str
    make: Callable[[str | None], Evaluator]
    source: Literal["none", "optional", "needed"] = "none"
    needs: str = ""

    def check(self, source: str | None) -> None:
        """Raise ToxlocError if a source is given that is not taken, or is missing."""
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


def _guard(source: str | None) -> Evaluator:
    from .guard import Guard

    return Guard()


def _profanity(source: str | None) -> Evaluator:
    from .profanity import ProfanityCheck

    return ProfanityCheck()


def _detoxify(variant: str) -> Maker:
    def make(source: str | None) -> Evaluator:
        from .detoxify import Detoxify

        return Detoxify(variant, source)

    return Maker(f"detoxify-{variant}", make, "optional")


def _published(name: str, hub: str, trained_on: str, blind_to: str) -> Maker:
    """A classifier of the hub."""

    def make(source: str | None) -> Evaluator:
        from .classifier import Classifier

        return Classifier(source or hub, name=name, card={"trained_on": trained_on, "blind_to": blind_to})

    return Maker(name, make, "optional")


def _classifier(source: str | None) -> Evaluator:
    from .classifier import Classifier

    assert source is not None
    return Classifier(source)


def _llm(template: str, needs: str) -> Maker:
    def make(source: str | None) -> Evaluator:
        from .llm import LLMJudge

        assert source is not None
        return LLMJudge(source, template)

    return Maker(template, make, "needed", needs)


EVALUATORS: dict[str, Maker] = {
    maker.name: maker
    for maker in (
        Maker("toxloc-guard", _guard),
        Maker("profanity-check", _profanity),
        _detoxify("original"),
        _detoxify("unbiased"),
        _detoxify("multilingual"),
        _published(
            "roberta-toxicity",
            "s-nlp/roberta_toxicity_classifier",
            "comments of the three Jigsaw challenges, in English",
            "implicit hate; the classifier of the ml-aura and ml-act protocols",
        ),
        _published(
            "dynabench-hate",
            "facebook/roberta-hate-speech-dynabench-r4-target",
            "four rounds of hate speech written to fool the previous model (Vidgen et al. 2021)",
            "profanity and insults that are not hate",
        ),
        Maker("classifier", _classifier, "needed", "a sequence classifier"),
        _llm("instruct", "a language model to ask"),
        _llm("llama-guard", "a Llama Guard model"),
        _llm("shieldgemma", "a ShieldGemma model"),
    )
}


@dataclass(frozen=True)
class Wanted:
    """An evaluator as users write it: NAME, NAME=SOURCE, NAME@THRESHOLD or NAME=SOURCE@THRESHOLD.

    Attributes:
        maker: how it is made.
        source: folder, file or hub id; None if none was given.
        threshold: a text is toxic if its score is at least this; None for the evaluator's own.
    """

    maker: Maker
    source: str | None
    threshold: float | None

    @classmethod
    def parse(cls, text: str) -> Wanted:
        """Read what a user wrote.

        Raises:
            ToxlocError: an unknown name, a source that is missing or not taken, or a threshold out of range.

        Example:
            >>> Wanted.parse("classifier=path/to/folder@0.8").threshold
            0.8
        """
        match = re.fullmatch(r"(.+?)(?:@(\d*\.?\d+))?", text, re.S)
        spec, threshold = match.groups() if match else (text, None)
        name, equals, source = spec.partition("=")
        if name not in EVALUATORS:
            raise ToxlocError(f"There is no evaluator {name!r}; there are {', '.join(EVALUATORS)}.")
        maker = EVALUATORS[name]
        maker.check(source if equals else None)
        if threshold is not None and not 0 < float(threshold) <= 1:
            raise ToxlocError(
                f"{text!r}: the threshold {threshold} is out of range; give a number above 0 and at most 1."
            )
        return cls(maker, source if equals else None, None if threshold is None else float(threshold))

    def make(self) -> Evaluator:
        """Make the evaluator, with the threshold if one was given."""
        evaluator = self.maker(self.source)
        if self.threshold is not None:
            evaluator.threshold = self.threshold
            evaluator.card = evaluator.card | {"threshold": "set by the user"}
        return evaluator


def check_evaluator_names(names: Sequence[str]) -> None:
    """Check evaluators that are given by name, without loading anything.

    Raises:
        ToxlocError: no names, a name twice, or what `Wanted.parse` raises; the message lists the known names.

    Example:
        >>> check_evaluator_names(["toxloc-guard", "profanity-check@0.7"])
    """
    if not names:
        raise ToxlocError(f"At least one evaluator is needed; there are {', '.join(EVALUATORS)}.")
    wanted = [Wanted.parse(name) for name in names]
    # Of the others, the name follows from the source; `get_evaluators` compares those.
    _check_different([one.maker.name for one in wanted if one.maker.source != "needed"])


def get_evaluators(wanted: Sequence[str | Evaluator]) -> list[Evaluator]:
    """Make evaluators from their names, and load them; evaluators are returned as they are, loaded.

    A name may be followed by `=` and a folder, file or hub id to load it from, and by `@` and a threshold:
    "detoxify-original=path/to/folder", "classifier=path/to/folder@0.8", "profanity-check@0.7".

    Raises:
        ToxlocError: no evaluators, an unknown name, the same name twice, or an evaluator that cannot be loaded.

    Example:
        >>> [(e.name, e.threshold) for e in get_evaluators(["profanity-check@0.7"])]
        [('profanity-check', 0.7)]
    """
    if not wanted:
        raise ToxlocError(f"At least one evaluator is needed; there are {', '.join(EVALUATORS)}.")
    parsed = [Wanted.parse(one) if isinstance(one, str) else one for one in wanted]
    evaluators = [one.make() if isinstance(one, Wanted) else one for one in parsed]
    _check_different([evaluator.name for evaluator in evaluators])
    for evaluator in evaluators:
        evaluator.prepare()
    return evaluators


def register(name: str, threshold: float = 0.5) -> Callable[[Function], Function]:
    """Make a function, from texts to scores from 0 to 1, an evaluator that can be asked for by name.

    Args:
        name: name of the evaluator.
        threshold: a text is toxic if its score is at least this.

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
        raise ToxlocError(f"Evaluators need different names, none of them {reserved}; got {', '.join(names)}.")
