"""Settings of a method, checked before there is a model to fit it to."""

import inspect
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ..errors import ToxlocError
from .budget import Budget
from .registry import check_method

NOT_SETTINGS = {"lm", "pairs", "neutral", "seed", "memory", "statistics", "aurocs", "maps"}  # whoever fits gives them


def parameters(method: str) -> dict[str, Any]:
    """Name all that a method's `fit` takes, each with its type.

    Raises:
        ToxlocError: an unknown method.
    """
    return {name: one.annotation for name, one in inspect.signature(check_method(method).fit).parameters.items()}


def accepted_settings(method: str) -> dict[str, Any]:
    """Name the settings of a method, each with its type.

    Raises:
        ToxlocError: an unknown method.

    Example:
        >>> "scale" in accepted_settings("meow2x")
        True
    """
    return {name: kind for name, kind in parameters(method).items() if name not in NOT_SETTINGS}


def check_settings(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a method as its `fit` takes them; a budget of several limits may be a mapping.

    What only a model can tell, such as how many layers there are, is left to the fit.

    Raises:
        ToxlocError: an unknown method or setting, a value of another type, or settings that do not go together.

    Example:
        >>> check_settings("trne", {"budget": {"kl": 0.02}})
        {'budget': Budget(perplexity=None, kl=0.02)}
    """
    accepted = accepted_settings(method)
    for name in settings:
        if name not in accepted:
            raise ToxlocError(f"{method} has no setting {name!r}; it takes {', '.join(accepted)}.")
    checked = {}
    for name, value in settings.items():
        if name == "budget" and isinstance(value, Mapping):
            value = _budget(method, value)
        try:
            adapter = TypeAdapter(accepted[name], config=ConfigDict(arbitrary_types_allowed=True, strict=False))
            checked[name] = adapter.validate_python(value)
        except ValidationError as error:
            raise ToxlocError(f"{method} cannot take {name}={value!r}: {error.errors()[0]['msg']}.") from None
    if (budget := checked.get("budget")) is not None:
        Budget.of(budget)
    check = getattr(check_method(method), "check_settings", None)
    if check is not None:
        check(**checked)
    return checked


def _budget(method: str, limits: Mapping[str, Any]) -> Budget:
    try:
        return Budget(**limits)
    except TypeError:
        raise ToxlocError(f"{method} cannot take budget={dict(limits)!r}; a budget has the limits perplexity and "
                          "kl.") from None
