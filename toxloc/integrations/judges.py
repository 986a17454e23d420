"""Judges as other tools name them: a list, or a text with commas from a command line."""

from collections.abc import Sequence

from ..evaluation.evaluators.base import Evaluator
from ..evaluation.evaluators.registry import DEFAULT, get_evaluators


def get_judges(wanted: str | Sequence[str | Evaluator] | None = None) -> list[Evaluator]:
    """Make evaluators from their names, and load them.

    Args:
        wanted: evaluators or their names, as in `get_evaluators`; or names in one text, separated by commas. By default
            the evaluators `DEFAULT`.

    Raises:
        ToxlocError: there are no names, a name is unknown or occurs twice, or an evaluator cannot be loaded.

    Example:
        >>> [judge.name for judge in get_judges("toxloc-rtp, profanity-check@0.7")]
        ['toxloc-rtp', 'profanity-check']
    """
    if wanted is None:
        wanted = DEFAULT
    elif isinstance(wanted, str):
        wanted = [name.strip() for name in wanted.split(",") if name.strip()]
    return get_evaluators(wanted)
