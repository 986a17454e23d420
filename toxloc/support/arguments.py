"""Checks of arguments, so that a value of a wrong type ends in a sentence before anything is computed."""

from collections.abc import Iterable, Mapping, Set
from operator import index
from typing import Any, TypeVar

from ..errors import ToxlocError

T = TypeVar("T")


def as_list(values: Iterable[T], what: str) -> list[T]:
    """Return the values of a list, tuple, array or generator as a list.

    Strings are refused, because Python reads a string as a sequence of letters. Dictionaries and sets are refused too:
    a dictionary would give its keys, and a set has no fixed order.

    Args:
        values: the values.
        what: meaning of the values in the error message, for example "the prompts".

    Raises:
        ToxlocError: `values` is a string, a dictionary or a set, or cannot be iterated.

    Example:
        >>> as_list(("a", "b"), "the prompts")
        ['a', 'b']
    """
    if isinstance(values, str | bytes | Mapping | Set) or not isinstance(values, Iterable):
        example = f", such as [{short_repr(values)}]" if isinstance(values, str) else ""
        raise ToxlocError(f"{_described(values)} was given for {what}; give a list{example}.")
    return list(values)


def check_kind(value: object, kind: type, what: str) -> None:
    """Check that a value is an instance of a class.

    Args:
        value: the value.
        kind: the class.
        what: meaning of the value in the error message, for example "the prompts".

    Raises:
        ToxlocError: the value is not an instance of the class.

    Example:
        >>> check_kind("text", str, "the name")
    """
    if not isinstance(value, kind):
        raise ToxlocError(f"{_described(value)} was given for {what}; give a value of the type {kind.__name__}.")


def whole_number(value: Any, name: str, at_least: int = 0) -> int:
    """Return a whole number as an int. NumPy's integers are whole numbers too, but True and False are not.

    Args:
        value: the number.
        name: name of the argument in the error message.
        at_least: the smallest number that is accepted.

    Raises:
        ToxlocError: `value` is not a whole number, or is less than `at_least`.

    Example:
        >>> whole_number(3, "count", at_least=1)
        3
    """
    try:
        number = index(value)
    except TypeError:
        number = at_least - 1
    if isinstance(value, bool) or number < at_least:
        raise ToxlocError(f"{name}={short_repr(value)}: give a whole number, {at_least} or more.")
    return number


def _described(value: object) -> str:
    if isinstance(value, str):
        return f"The string {short_repr(value)}"
    return f"A value of the type {type(value).__name__}"


def short_repr(value: object, limit: int = 40) -> str:
    """Return the repr of a value for a message, cut after `limit` characters.

    Example:
        >>> short_repr("a" * 50, limit=5)
        "'aaaa…"
    """
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}…"
