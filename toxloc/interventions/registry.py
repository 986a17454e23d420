"""Registry of the methods by name: the files of the folder `methods`, and the classes that users define."""

import importlib
import pkgutil
from functools import cache
from typing import Any

from ..errors import ToxlocError
from . import methods
from .base import KINDS, Intervention
from .settings import MethodSettings

FIRST = ("trne", "meow2x")  # listed first; the other methods follow in alphabetical order


@cache
def find_methods() -> None:
    """Import every file of the folder `methods`; importing a file registers its class."""
    for module in pkgutil.iter_modules(methods.__path__):
        importlib.import_module(f"{methods.__name__}.{module.name}")


def all_methods() -> dict[str, type[Intervention]]:
    """Return every kind of intervention that can be fitted, by name, without importing torch."""
    find_methods()
    names = sorted(
        (kind for kind, cls in KINDS.items() if cls.Settings is not None),
        key=lambda kind: (FIRST.index(kind) if kind in FIRST else len(FIRST), kind),
    )
    return {kind: KINDS[kind] for kind in names}


def method_named(name: str) -> type[Intervention]:
    """Return the class of the method with this name.

    Raises:
        ToxlocError: the name is unknown; the message lists the known names.

    Example:
        >>> method_named("trne").title
        'TRNE'
    """
    known = all_methods()
    if name not in known:
        raise ToxlocError(f"Unknown method {name!r}; choose one of {', '.join(known)}.")
    return known[name]


def method_settings(name: str, **options: Any) -> MethodSettings:
    """Return a method's settings, validated without a model.

    Raises:
        ToxlocError: an unknown method or setting, a value out of range, or incompatible settings.

    Example:
        >>> method_settings("trne", budget={"kl": 0.02}).budget
        Budget(perplexity=None, kl=0.02)
    """
    settings = method_named(name).Settings
    assert settings is not None
    unknown = [option for option in options if option not in settings.model_fields]
    if unknown:
        raise ToxlocError(f"{name} has no setting {unknown[0]!r}; it takes {', '.join(settings.model_fields)}.")
    try:
        return settings.of(**options)
    except ToxlocError as error:
        raise ToxlocError(f"{name}: {error}") from None
