"""Settings: frozen, checked values with a description each, from which signatures, commands and grids are made.

A settings class is declared once. `signature_from` gives its fields to a Python function, `toxloc.cli.from_settings`
makes command-line options of them, and grids validate their keys with it. This module and every settings class can be
imported without torch, so that wrong settings are refused at once.
"""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ..errors import ToxlocError

F = TypeVar("F", bound=Callable[..., Any])
S = TypeVar("S", bound="Settings")


class Settings(BaseModel):
    """Base class of all settings: frozen, without unknown fields, checked when made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def of(cls: type[S], settings: "Settings | None" = None, **options: Any) -> S:
        """Return settings made of options, or `settings` with the options changed.

        `settings` may be of a class that has more fields.

        Raises:
            ToxlocError: an unknown option, or a value out of range; the message names both.

        Example:
            >>> class Walk(Settings):
            ...     steps: int = option(5, "how many steps", ge=1)
            >>> Walk.of(steps=3).steps
            3
        """
        known = cls.model_fields
        for name in options:
            if name not in known:
                raise ToxlocError(f"There is no setting {name!r} here; there are {', '.join(known)}.")
        given = () if settings is None else [name for name in settings.model_fields_set if name in known]
        kept = {name: getattr(settings, name) for name in given}
        try:
            return cls(**{**kept, **options})
        except ValidationError as error:
            raise ToxlocError(first_problem(error)) from None

    def changed(self) -> dict[str, Any]:
        """Return the fields whose value is not the default."""
        return {
            name: getattr(self, name)
            for name, field in type(self).model_fields.items()
            if getattr(self, name) != field.get_default(call_default_factory=True)
        }


def option(default: Any, description: str, *, panel: str | None = None, flag: str | None = None, **rules: Any) -> Any:
    """Declare a field of a settings class.

    Args:
        default: its value if none is given; `...` if it must be given.
        description: what it means, as a phrase; help texts and pages show it.
        panel: heading under which the command line lists it.
        flag: its name on the command line, without dashes; by default the field's name with dashes.
        rules: bounds and whatever else pydantic's `Field` takes (ge=1, lt=1, min_length=1, ...).
    """
    shown: dict[str, Any] = {name: value for name, value in (("panel", panel), ("flag", flag)) if value is not None}
    return Field(default, description=description, json_schema_extra=shown, **rules)


def flag_of(name: str, field: FieldInfo) -> str:
    """Return the option's name on the command line, without dashes in front."""
    return str(extra_of(field).get("flag") or name.replace("_", "-"))


def extra_of(field: FieldInfo) -> dict[str, Any]:
    """Return what `option` noted beside the description: panel and flag."""
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def first_problem(error: ValidationError) -> str:
    """Say in one sentence which value is wrong and why.

    A field of several types has one error per type; their messages are joined.
    """
    errors = error.errors()
    first, name = errors[0], errors[0]["loc"][:1]
    where = ".".join(str(part) for i, part in enumerate(first["loc"]) if i == 0 or isinstance(part, int))
    if first["type"] == "missing":
        return f"{where} is missing; give it a value."
    for one in errors:
        if one["type"] == "value_error" and isinstance(cause := one["ctx"]["error"], ToxlocError):
            return str(cause)
    if first["type"] == "too_short":
        return f"{where}={first['input']!r}: give at least one."
    messages = dict.fromkeys(
        one["msg"].removeprefix("Value error, ").partition(", unable")[0] for one in errors if one["loc"][:1] == name
    )
    joined = " or ".join(messages).replace("or Input should be", "or").replace("Input should be", "it must be")
    return f"{where}={first['input']!r}: {joined}."


def signature_from(settings: type[Settings], leave_out: tuple[str, ...] = ()) -> Callable[[F], F]:
    """Show the fields of a settings class in a function's signature, in place of its `**options`.

    Example:
        >>> class Walk(Settings):
        ...     steps: int = option(5, "how many steps")
        >>> @signature_from(Walk)
        ... def walk(where, **options): return Walk.of(**options)
        >>> str(inspect.signature(walk))
        '(where, *, steps: int = 5)'
    """

    def show(function: F) -> F:
        function.__signature__ = with_fields(inspect.signature(function), settings, leave_out)  # type: ignore[attr-defined]
        return function

    return show


def with_fields(
    signature: inspect.Signature, settings: type[Settings], leave_out: tuple[str, ...] = ()
) -> inspect.Signature:
    """Return a signature with a keyword-only parameter for each field in place of its `**options`."""
    own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    names = {one.name for one in own} | set(leave_out)
    fields = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=field.annotation, default=_default(field))
        for name, field in settings.model_fields.items()
        if name not in names
    ]
    return signature.replace(parameters=[*own, *fields])


def _default(field: FieldInfo) -> Any:
    value = field.get_default(call_default_factory=True)
    return inspect.Parameter.empty if value is PydanticUndefined else value
