"""Judges of text, several at a time: one evaluator alone underestimates toxicity."""

from collections.abc import Callable, Sequence

from ..errors import ToxlocError
from .base import Evaluator, FunctionEvaluator
from .guard import Guard
from .profanity import ProfanityCheck

EVALUATORS: dict[str, Callable[[], Evaluator]] = {"toxloc-guard": Guard, "profanity-check": ProfanityCheck}
DEFAULT = ("toxloc-guard", "profanity-check")

__all__ = ["DEFAULT", "EVALUATORS", "Evaluator", "FunctionEvaluator", "Guard", "ProfanityCheck", "get_evaluators"]


def get_evaluators(wanted: Sequence[str | Evaluator]) -> list[Evaluator]:
    """Make evaluators from their names; evaluators pass through.

    Raises:
        ToxlocError: none given, an unknown name, or the same name twice.

    Example:
        >>> [e.name for e in get_evaluators(["profanity-check"])]
        ['profanity-check']
    """
    if not wanted:
        raise ToxlocError(f"At least one evaluator is needed; there are {', '.join(EVALUATORS)}.")
    found = []
    for one in wanted:
        if isinstance(one, str) and one not in EVALUATORS:
            raise ToxlocError(f"There is no evaluator {one!r}; there are {', '.join(EVALUATORS)}.")
        found.append(EVALUATORS[one]() if isinstance(one, str) else one)
    names = [evaluator.name for evaluator in found]
    if len(set(names)) < len(names) or {"any", "both"} & set(names):
        raise ToxlocError(f"Evaluators need different names, none of them 'any' or 'both'; got {', '.join(names)}.")
    return found
