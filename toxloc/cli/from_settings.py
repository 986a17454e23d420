"""Command-line options from settings classes, so that an option is declared once."""

import inspect
from collections.abc import Callable
from functools import wraps
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from ..support.settings import Settings, extra_of, flag_of


def takes(settings: type[Settings], *, arguments: tuple[str, ...] = (), leave_out: tuple[str, ...] = ()
          ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command an option for every field of a settings class.

    The command is called with `settings=`, made of the options and checked; nothing is imported for that but the
    settings class.

    Args:
        settings: the class.
        arguments: fields that are arguments instead of options, in order.
        leave_out: fields that the command line does not offer.
    """
    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        own = [one for one in inspect.signature(command).parameters.values() if one.name != "settings"]
        fields = {name: field for name, field in settings.model_fields.items() if name not in leave_out}
        made = [_parameter(name, field, name in arguments) for name, field in fields.items()]
        made.sort(key=lambda one: arguments.index(one.name) if one.name in arguments else len(arguments))

        @wraps(command)
        def with_settings(**given: Any) -> Any:
            # Options that were not given are left out, so that the settings know what was asked for.
            asked: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()
                     if name in fields and value != _shown(fields[name])}
            chosen = settings.of(**asked)
            return command(settings=chosen, **{name: value for name, value in given.items() if name not in fields})

        needed = [one for one in (*made, *own) if one.default is inspect.Parameter.empty]
        others = [one for one in (*made, *own) if one.default is not inspect.Parameter.empty]
        parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*needed, *others)]
        with_settings.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_settings.__annotations__ = {one.name: one.annotation for one in parameters}
        return with_settings

    return decorate


def _parameter(name: str, field: FieldInfo, is_argument: bool) -> inspect.Parameter:
    kind, text = _kind(field.annotation), f"{field.description}."
    text = text[:1].upper() + text[1:]
    if is_argument:
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[
            kind, typer.Argument(help=text, show_default=False)])
    flag = f"--{flag_of(name, field)}"
    flags = f"{flag}/--no-{flag[2:]}" if kind is bool else flag
    declared = typer.Option(flags, help=text, rich_help_panel=extra_of(field).get("panel"))
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_shown(field),
                             annotation=Annotated[kind, declared])


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
