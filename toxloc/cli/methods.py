"""`toxloc methods`: list the methods and their settings."""

from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from rich.table import Table

from .output import terminal

KINDS = {bool: "true or false", int: "integer", float: "number"}


def methods(
    name: Annotated[
        str | None,
        typer.Argument(metavar="METHOD", help="Show the settings of this method. Default: list all methods."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the methods that reduce toxicity, or the settings of one method.

    Pass a setting to `toxloc suppress` as --set NAME=VALUE, or set it by its name in a grid of `toxloc sweep`.
    """
    from ..interventions.registry import all_methods, method_named

    if name is None:
        rows: list[dict[str, Any]] = [
            {"method": kind, "title": method.title, "source": method.paper} for kind, method in all_methods().items()
        ]
    else:
        settings = method_named(name).Settings
        assert settings is not None
        rows = [
            {
                "setting": setting,
                "default": _default(field.get_default(call_default_factory=True)),
                "values": _values(field.annotation),
                "meaning": field.description,
            }
            for setting, field in settings.model_fields.items()
        ]
    if json:
        from json import dumps

        print(dumps(rows, indent=2, ensure_ascii=False))
        return
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    terminal().print(table)


def _default(value: Any) -> Any:
    """Return a default as JSON: for a budget, the limits that it sets."""
    limits = getattr(value, "to_dict", None)
    return value if limits is None else {name: limit for name, limit in limits().items() if limit is not None}


def _cell(value: Any) -> str:
    """Return a value as text: null, true and false as in YAML, which is how --set and grids read them."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items()) or "none"
    return str(value)


def _values(annotation: Any) -> str:
    """Return the values that a setting takes as text: the names, or the type of the value."""
    if get_origin(annotation) is Literal:
        return ", ".join(map(str, get_args(annotation)))
    if get_origin(annotation) is tuple:
        return "list"
    if get_origin(annotation) is dict:
        return "mapping"
    if parts := [member for member in get_args(annotation) if member is not NoneType]:
        return ", ".join(map(_values, parts))
    return KINDS.get(annotation, "number, mapping")  # the default is for budgets
