"""Judges of text, several at a time: one evaluator alone underestimates toxicity."""

import re
from collections.abc import Callable, Sequence

from ...errors import ToxlocError
from .base import Evaluator, FunctionEvaluator
from .classifier import Classifier
from .detoxify import Detoxify
from .guard import Guard
from .llm import LLMJudge, Template
from .profanity import ProfanityCheck

Maker = Callable[[str | None], Evaluator]  # from what stands after NAME=


def _preset(hub: str, name: str, trained_on: str, blind_to: str) -> Maker:
    card = {"trained_on": trained_on, "blind_to": blind_to}
    return lambda source: Classifier(source or hub, name=name, card=card)


def _alone(make: Callable[[], Evaluator], name: str) -> Maker:
    def maker(source: str | None) -> Evaluator:
        if source is not None:
            raise ToxlocError(f"{name} comes with toxloc and takes no source; write {name}, not {name}={source}.")
        return make()
    return maker


def _needing(make: Callable[[str], Evaluator], name: str, what: str) -> Maker:
    def maker(source: str | None) -> Evaluator:
        if source is None:
            raise ToxlocError(f"{name} needs {what}: write {name}=PATH or {name}=HUB-ID.")
        return make(source)
    return maker


EVALUATORS: dict[str, Maker] = {
    "toxloc-guard": _alone(Guard, "toxloc-guard"),
    "profanity-check": _alone(ProfanityCheck, "profanity-check"),
    **{f"detoxify-{variant}": lambda source, variant=variant: Detoxify(variant, source)  # type: ignore[misc]
       for variant in ("original", "unbiased", "multilingual")},
    "roberta-toxicity": _preset("s-nlp/roberta_toxicity_classifier", "roberta-toxicity",
                                "comments of the three Jigsaw challenges, in English",
                                "implicit hate; the classifier of the ml-aura and ml-act protocols"),
    "dynabench-hate": _preset("facebook/roberta-hate-speech-dynabench-r4-target", "dynabench-hate",
                              "four rounds of hate speech written to fool the model before (Vidgen et al. 2021)",
                              "profanity and insults that are not hate"),
    "classifier": _needing(Classifier, "classifier", "a sequence classifier"),
    "instruct": _needing(lambda source: LLMJudge(source, "instruct"), "instruct", "a language model to ask"),
    "llama-guard": _needing(lambda source: LLMJudge(source, "llama-guard"), "llama-guard", "a Llama Guard model"),
    "shieldgemma": _needing(lambda source: LLMJudge(source, "shieldgemma"), "shieldgemma", "a ShieldGemma model"),
}
DEFAULT = ("toxloc-guard", "profanity-check")

__all__ = ["DEFAULT", "EVALUATORS", "Classifier", "Detoxify", "Evaluator", "FunctionEvaluator", "Guard", "LLMJudge",
           "ProfanityCheck", "Template", "get_evaluators", "register"]


def get_evaluators(wanted: Sequence[str | Evaluator]) -> list[Evaluator]:
    """Make evaluators from their names, and load them; evaluators pass through.

    A name may be followed by `=` and a folder, file or hub id to load it from, and by `@` and a threshold:
    "detoxify-original=path/to/folder", "classifier=path/to/folder@0.8", "profanity-check@0.7".

    Raises:
        ToxlocError: none given, an unknown name, the same name twice, or an evaluator that cannot be had.

    Example:
        >>> [(e.name, e.threshold) for e in get_evaluators(["profanity-check@0.7"])]
        [('profanity-check', 0.7)]
    """
    if not wanted:
        raise ToxlocError(f"At least one evaluator is needed; there are {', '.join(EVALUATORS)}.")
    found = [_made(one) if isinstance(one, str) else one for one in wanted]
    names = [evaluator.name for evaluator in found]
    if len(set(names)) < len(names) or {"any", "both"} & set(names):
        raise ToxlocError(f"Evaluators need different names, none of them 'any' or 'both'; got {', '.join(names)}.")
    for evaluator in found:
        evaluator.prepare()
    return found


def register(name: str, threshold: float = 0.5) -> Callable[[Callable[[Sequence[str]], Sequence[float]]],
                                                            Callable[[Sequence[str]], Sequence[float]]]:
    """Make a function, from texts to scores from 0 to 1, an evaluator that can be asked for by name.

    Raises:
        ToxlocError: there is an evaluator of that name already.

    Example:
        >>> @register("shouting")
        ... def shouting(texts): return [float(text.isupper()) for text in texts]
        >>> get_evaluators(["shouting"])[0].score(["HEY"])["toxicity"]
        array([1.])
    """
    if name in EVALUATORS:
        raise ToxlocError(f"There is an evaluator {name!r} already; choose another name.")

    def add(function: Callable[[Sequence[str]], Sequence[float]]) -> Callable[[Sequence[str]], Sequence[float]]:
        EVALUATORS[name] = _alone(lambda: FunctionEvaluator(name, function, threshold), name)
        return function

    return add


def _made(wanted: str) -> Evaluator:
    spec, threshold = re.fullmatch(r"(.+?)(?:@(\d*\.?\d+))?", wanted, re.S).groups()  # type: ignore[union-attr]
    name, equals, source = spec.partition("=")
    if name not in EVALUATORS:
        raise ToxlocError(f"There is no evaluator {name!r}; there are {', '.join(EVALUATORS)}.")
    evaluator = EVALUATORS[name](source if equals else None)
    if threshold is not None:
        evaluator.threshold = float(threshold)
        evaluator.card = evaluator.card | {"threshold": "set by the user"}
        if not 0 < evaluator.threshold <= 1:
            raise ToxlocError(f"{wanted!r}: a threshold lies over 0 and up to 1, not at {threshold}.")
    return evaluator
