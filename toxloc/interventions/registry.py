"""The methods by name: every file of the folder `methods`, and every class that a user defines."""

import importlib
import pkgutil
from functools import cache
from typing import Any

from ..errors import ToxlocError
from . import methods
from .base import KINDS, Intervention
from .settings import MethodSettings

FIRST = ("trne", "meow2x")  # in lists; the others follow in alphabetical order


@cache
def find_methods() -> None:
    """Import every file of the folder `methods`, which registers its class."""
    for module in pkgutil.iter_modules(methods.__path__):
        importlib.import_module(f"{methods.__name__}.{module.name}")


def all_methods() -> dict[str, type[Intervention]]:
    """Return every kind of intervention that can be fitted, by name. Nothing here imports torch."""
    find_methods()
    names = sorted(
        (kind for kind, cls in KINDS.items() if cls.Settings is not None),
        key=lambda kind: (FIRST.index(kind) if kind in FIRST else len(FIRST), kind),
    )
    return {kind: KINDS[kind] for kind in names}


def method_named(name: str) -> type[Intervention]:
    """Return the method of a name.

    Raises:
        ToxlocError: there is none; the message lists those that are.

    Example:
        >>> method_named("trne").title
        'TRNE'
    """
    known = all_methods()
    if name not in known:
        raise ToxlocError(f"Unknown method {name!r}; choose one of {', '.join(known)}.")
    return known[name]


def method_settings(name: str, **options: Any) -> MethodSettings:
    """Return a method's settings, checked before there is a model to fit it to.

    Raises:
        ToxlocError: an unknown method or setting, a value out of range, or settings that do not go together.

    Example:
        >>> method_settings("trne", budget={"kl": 0.02}).budget
        Budget(perplexity=None, kl=0.02)
    """
    settings = method_named(name).Settings
    assert settings is not None
    unknown = [one for one in options if one not in settings.model_fields]
    if unknown:
        raise ToxlocError(f"{name} has no setting {unknown[0]!r}; it takes {', '.join(settings.model_fields)}.")
    try:
        return settings.of(**options)
    except ToxlocError as error:
        raise ToxlocError(f"{name}: {error}") from None
