"""Make command-line options from the fields of settings classes, so that each option is declared once."""

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
    """Decorate a command with an option for each field of a settings class.

    The decorated command checks the options by making an instance of the class, and passes it on as `settings`. For
    this, it imports nothing but the settings class. The help lists the panels in the order of `PANELS`; in each panel,
    the fields of the class itself come before the fields of its base classes.

    Args:
        settings: the settings class.
        arguments: fields that become positional arguments instead of options, in order.
        leave_out: fields without an option.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        others = [
            parameter for parameter in inspect.signature(command).parameters.values() if parameter.name != "settings"
        ]
        fields = {name: field for name, field in settings.model_fields.items() if name not in leave_out}
        ordered = sorted(fields, key=lambda name: _declaration_order(settings, name))
        options = [_option(name, fields[name]) for name in ordered if name not in arguments]
        parameters = [
            *(_argument(name, fields[name]) for name in arguments),
            *sorted([*options, *others], key=_panel_index),
        ]
        parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]

        @wraps(command)
        def with_settings(**given: Any) -> Any:
            # Leave out values that are the default, so that `model_fields_set` names only the options that differ.
            changed = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in given.items()
                if name in fields and value != _cli_default(fields[name])
            }
            chosen = settings.of(None, **changed)
            return command(settings=chosen, **{name: value for name, value in given.items() if name not in fields})

        with_settings.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_settings.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return with_settings

    return decorate


def _declaration_order(settings: type[Settings], name: str) -> tuple[int, int]:
    """Return a sort key: the position in the MRO of the class that declares the field, and the position in it."""
    declared = [list(inspect.get_annotations(base)) for base in settings.__mro__]
    return next((i, names.index(name)) for i, names in enumerate(declared) if name in names)


def _panel_index(parameter: inspect.Parameter) -> int:
    panel = getattr(get_args(parameter.annotation)[1], "rich_help_panel", None)
    return PANELS.index(panel) if panel in PANELS else len(PANELS)


def _argument(name: str, field: FieldInfo) -> inspect.Parameter:
    declared = typer.Argument(help=_help(field), show_default=False)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[_cli_type(field.annotation), declared]
    )


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    kind, flag = _cli_type(field.annotation), flag_of(name, field)
    list_type = next((member for member in (kind, *get_args(kind)) if get_origin(member) is list), None)
    declared = typer.Option(
        f"--{flag}/--no-{flag}" if kind is bool else f"--{flag}",
        help=_help(field),
        metavar=f"<{get_args(list_type)[0].__name__}>" if list_type else None,  # typer would show <list[str]>
        rich_help_panel=extra_of(field).get("panel"),
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[kind, declared],
        default=inspect.Parameter.empty if field.is_required() else _cli_default(field),
    )


def _help(field: FieldInfo) -> str:
    text = f"{field.description}."
    return text[:1].upper() + text[1:]


def _cli_default(field: FieldInfo) -> Any:
    """Return the default of a field as typer needs it: a list in place of a tuple."""
    value = field.get_default(call_default_factory=True)
    return list(value) if isinstance(value, tuple) else value


def _cli_type(annotation: Any) -> Any:
    """Return the type of an option: a list for a tuple, `str` for a `Literal`; the settings class checks the values."""
    if get_origin(annotation) is Annotated:
        return _cli_type(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        kinds = [_cli_type(member) for member in get_args(annotation) if member is not NoneType]
        return kinds[0] | None if NoneType in get_args(annotation) else kinds[0]
    if get_origin(annotation) is tuple:
        return list[_cli_type(get_args(annotation)[0])]  # type: ignore[misc]
    if get_origin(annotation) is Literal:
        return str
    return annotation
