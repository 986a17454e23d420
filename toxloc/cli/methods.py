"""`toxloc methods`: the methods and their settings."""

from typing import Annotated

import typer
from rich.table import Table

from .output import terminal


def methods(
    name: Annotated[str | None, typer.Argument(help="Show the settings of this method. Default: list all.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the methods that turn toxicity down, or the settings of one."""
    from ..interventions.registry import all_methods, method_named

    if name is None:
        rows = [(kind, method.title, method.paper) for kind, method in all_methods().items()]
        columns = ("method", "title", "source")
    else:
        settings = method_named(name).Settings
        assert settings is not None
        rows = [(option, _default(field), field.description or "") for option, field in settings.model_fields.items()]
        columns = ("setting", "default", "meaning")
    if json:
        from json import dumps

        print(dumps([dict(zip(columns, row, strict=True)) for row in rows], indent=2, ensure_ascii=False))
        return
    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    terminal().print(table)


def _default(field: object) -> str:
    value = getattr(field, "default", None)
    limits = getattr(value, "to_dict", None)
    return str(value) if limits is None else ", ".join(f"{name} {one}" for name, one in limits().items() if one)
