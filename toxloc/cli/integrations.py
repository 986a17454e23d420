"""`toxloc integrations`: where the parts of toxloc are that other evaluation tools load."""

from typing import Annotated

import typer
from rich.table import Column, Table

from .output import terminal


def integrations(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Print only this folder: lm-eval or evaluate. Default: list both."),
    ] = None,
) -> None:
    """Print the folders to pass to other evaluation tools, so that toxloc's evaluators judge there.

    Example: lm_eval --include_path "$(toxloc integrations lm-eval)" --tasks toxloc_rtp ...
    """
    from ..errors import ToxlocError
    from ..integrations.folders import FOLDERS

    if name is None:
        table = Table(Column("name", no_wrap=True), Column("folder", overflow="fold"))
        for tool, folder in FOLDERS.items():
            table.add_row(tool, str(folder))
        terminal().print(table)
    elif name in FOLDERS:
        print(FOLDERS[name])
    else:
        raise ToxlocError(f"There is no folder for {name!r}; choose one of {', '.join(FOLDERS)}.")
