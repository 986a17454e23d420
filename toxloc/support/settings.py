"""Settings classes: immutable, validated fields with descriptions.

A settings class is declared once. `signature_from` copies its fields into the signature of a Python function,
`toxloc.cli.from_settings` turns them into command-line options, and grids validate their keys against them. This module
and every settings class can be imported without torch, so that wrong settings are rejected at once.
"""

import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ..errors import ToxlocError
from .arguments import short_repr

F = TypeVar("F", bound=Callable[..., Any])
S = TypeVar("S", bound="Settings")
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what every random generator here accepts


class Settings(BaseModel):
    """Base class of all settings: immutable, validated on creation, without unknown fields, infinite numbers or NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def of(cls: type[S], settings: "Settings | None" = None, **options: Any) -> S:
        """Return settings with the values of `options`; other fields come from `settings`, if given, or the defaults.

        `settings` may be an instance of another settings class. Its fields that this class lacks are ignored.

        Raises:
            ToxlocError: an option is unknown or its value is invalid; the message names both.

        Example:
            >>> class Walk(Settings):
            ...     steps: int = option(5, "how many steps", ge=1)
            >>> Walk.of(steps=3).steps
            3
        """
        known = cls.model_fields
        for name in options:
            if name not in known:
                raise ToxlocError(f"There is no setting {name!r}; choose one of {', '.join(known)}.")
        shared = () if settings is None else [name for name in settings.model_fields_set if name in known]
        kept = {name: getattr(settings, name) for name in shared}
        try:
            return cls(**{**kept, **options})
        except ValidationError as error:
            raise ToxlocError(first_problem(error)) from None

    def changed(self) -> dict[str, Any]:
        """Return the fields whose value differs from the default, by name."""
        return {
            name: getattr(self, name)
            for name, field in type(self).model_fields.items()
            if getattr(self, name) != field.get_default(call_default_factory=True)
        }


def option(default: Any, description: str, *, panel: str | None = None, flag: str | None = None, **rules: Any) -> Any:
    """Declare a field of a settings class.

    Args:
        default: default value; `...` for a required field.
        description: meaning of the field, as a phrase; shown in help texts and documentation pages.
        panel: heading of the option in the command-line help.
        flag: name of the option on the command line, without leading dashes; by default the field's name with dashes
            in place of underscores.
        rules: bounds and other arguments of pydantic's `Field` (ge=1, lt=1, min_length=1, ...).
    """
    shown: dict[str, Any] = {name: value for name, value in (("panel", panel), ("flag", flag)) if value is not None}
    return Field(default, description=description, json_schema_extra=shown, **rules)


def flag_of(name: str, field: FieldInfo) -> str:
    """Return the name of the field's option on the command line, without leading dashes."""
    return str(extra_of(field).get("flag") or name.replace("_", "-"))


def extra_of(field: FieldInfo) -> dict[str, Any]:
    """Return the panel and the flag that `option` stored in the field; only those that were given."""
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def first_problem(error: ValidationError) -> str:
    """Return a sentence that says which value is invalid and why.

    A field with several types has one error per type; their messages are joined.
    """
    errors = error.errors()
    first, name = errors[0], errors[0]["loc"][:1]
    where = ".".join(str(part) for i, part in enumerate(first["loc"]) if i == 0 or isinstance(part, int))
    if first["type"] == "missing":
        return f"{where} is missing; give it a value."
    for problem in errors:
        if problem["type"] == "value_error" and isinstance(cause := problem["ctx"]["error"], ToxlocError):
            return str(cause)
    if first["type"] == "too_short":
        return f"{where}={short_repr(first['input'], 80)}: give at least one value."
    messages = dict.fromkeys(
        problem["msg"].removeprefix("Value error, ").partition(", unable")[0]
        for problem in errors
        if problem["loc"][:1] == name
    )
    joined = " or ".join(messages).replace("or Input should be", "or").replace("Input should be", "it must be")
    return f"{where}={short_repr(first['input'], 80)}: {joined}."


def signature_from(settings: type[Settings], leave_out: tuple[str, ...] = ()) -> Callable[[F], F]:
    """Decorate a function so that its signature shows the fields of a settings class in place of `**options`.

    Args:
        settings: the settings class.
        leave_out: names of fields to leave out of the signature.

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
    """Return a signature with a keyword-only parameter for each field in place of `**options`; see `signature_from`."""
    kept = [
        parameter for parameter in signature.parameters.values() if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    names = {parameter.name for parameter in kept} | set(leave_out)
    fields = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=field.annotation, default=_default(field))
        for name, field in settings.model_fields.items()
        if name not in names
    ]
    return signature.replace(parameters=[*kept, *fields])


def _default(field: FieldInfo) -> Any:
    value = field.get_default(call_default_factory=True)
    return inspect.Parameter.empty if value is PydanticUndefined else value
