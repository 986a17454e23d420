"""`toxloc methods`: the methods and their settings."""

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
    """List the methods that turn toxicity down, or the settings of one method.

    Give a setting to `toxloc suppress` as --set NAME=VALUE, or to a grid of `toxloc sweep` by its name.
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
                "setting": one,
                "default": _default(field.get_default(call_default_factory=True)),
                "values": _values(field.annotation),
                "meaning": field.description,
            }
            for one, field in settings.model_fields.items()
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
    """The default as JSON; of a budget, its limits."""
    limits = getattr(value, "to_dict", None)
    return value if limits is None else {name: one for name, one in limits().items() if one is not None}


def _cell(value: Any) -> str:
    """A value as YAML has it, which is how --set and grids read it."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return ", ".join(f"{name} {one}" for name, one in value.items()) or "none"
    return str(value)


def _values(annotation: Any) -> str:
    """The values that a setting takes, in words: names, or the kind of value."""
    if get_origin(annotation) is Literal:
        return ", ".join(map(str, get_args(annotation)))
    if get_origin(annotation) is tuple:
        return "list"
    if get_origin(annotation) is dict:
        return "mapping"
    if parts := [one for one in get_args(annotation) if one is not NoneType]:
        return ", ".join(map(_values, parts))
    return KINDS.get(annotation, "number, mapping")  # the last is a budget
