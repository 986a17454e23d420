"""Command-line options from settings classes, so that an option is declared once."""

import inspect
from collections.abc import Callable
from functools import wraps
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from ..support.settings import Settings, extra_of, flag_of
from .options import PANELS


def takes(
    settings: type[Settings], *, arguments: tuple[str, ...] = (), leave_out: tuple[str, ...] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command an option for every field of a settings class.

    The command is called with `settings=`, made of the options and checked; nothing is imported for that but the
    settings class. Help lists the panels in the order of `PANELS`, and in each panel the fields of the class itself
    before the fields of its base classes.

    Args:
        settings: the class.
        arguments: fields that are arguments instead of options, in order.
        leave_out: fields that the command line does not offer.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        own = [one for one in inspect.signature(command).parameters.values() if one.name != "settings"]
        fields = {name: field for name, field in settings.model_fields.items() if name not in leave_out}
        first = sorted(fields, key=lambda name: _declared(settings, name))
        options = [_option(name, fields[name]) for name in first if name not in arguments]
        parameters = [
            *(_argument(name, fields[name]) for name in arguments),
            *sorted([*options, *own], key=_place_of_panel),
        ]
        parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]

        @wraps(command)
        def with_settings(**given: Any) -> Any:
            # Options that were not given are left out, so that the settings know what was asked for.
            asked = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in given.items()
                if name in fields and value != _shown(fields[name])
            }
            chosen = settings.of(None, **asked)
            return command(settings=chosen, **{name: value for name, value in given.items() if name not in fields})

        with_settings.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_settings.__annotations__ = {one.name: one.annotation for one in parameters}
        return with_settings

    return decorate


def _declared(settings: type[Settings], name: str) -> tuple[int, int]:
    """Where a field is declared: how far up in the base classes (0 for the class itself), and its place there."""
    declared = [list(inspect.get_annotations(base)) for base in settings.__mro__]
    return next((i, names.index(name)) for i, names in enumerate(declared) if name in names)


def _place_of_panel(parameter: inspect.Parameter) -> int:
    panel = getattr(get_args(parameter.annotation)[1], "rich_help_panel", None)
    return PANELS.index(panel) if panel in PANELS else len(PANELS)


def _argument(name: str, field: FieldInfo) -> inspect.Parameter:
    declared = typer.Argument(help=_help(field), show_default=False)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[_kind(field.annotation), declared]
    )


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    kind, flag = _kind(field.annotation), flag_of(name, field)
    several = next((one for one in (kind, *get_args(kind)) if get_origin(one) is list), None)
    declared = typer.Option(
        f"--{flag}/--no-{flag}" if kind is bool else f"--{flag}",
        help=_help(field),
        metavar=f"<{get_args(several)[0].__name__}>" if several else None,  # not <list[str]>
        rich_help_panel=extra_of(field).get("panel"),
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[kind, declared],
        default=inspect.Parameter.empty if field.is_required() else _shown(field),
    )


def _help(field: FieldInfo) -> str:
    text = f"{field.description}."
    return text[:1].upper() + text[1:]


def _shown(field: FieldInfo) -> Any:
    """The default as the command line has it: a list for a tuple."""
    value = field.get_default(call_default_factory=True)
    return list(value) if isinstance(value, tuple) else value


def _kind(annotation: Any) -> Any:
    """The type of an option: a list for several values, text for names; what is allowed is checked by the settings."""
    if get_origin(annotation) is Annotated:
        return _kind(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        kinds = [_kind(one) for one in get_args(annotation) if one is not NoneType]
        return kinds[0] | None if NoneType in get_args(annotation) else kinds[0]
    if get_origin(annotation) is tuple:
        return list[_kind(get_args(annotation)[0])]  # type: ignore[misc]
    if get_origin(annotation) is Literal:
        return str
    return annotation
