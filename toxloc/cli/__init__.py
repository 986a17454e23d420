"""The command line, one file per command. Heavy libraries are imported inside the commands, so that help is fast."""

import sys
from typing import Annotated

import typer

from ..version import __version__
from .calibrate import calibrate
from .compare import compare
from .evaluate import evaluate
from .export import export
from .integrations import integrations
from .methods import methods
from .models import models
from .output import alarm, terminal
from .run import run
from .suppress import suppress
from .sweep import sweep

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_show_locals=False,
)


def _version(requested: bool) -> None:
    if requested:
        print(f"toxloc {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Find the parts of a language model that produce toxic text, reduce their effect, and measure the cost."""


for command in (run, suppress, methods, evaluate, compare, calibrate, export, sweep, integrations):
    app.command()(command)
app.add_typer(models, name="models")


def entry() -> None:
    """Run the command line; a `ToxlocError` or a fault of the machine prints one sentence and exits with code 2."""
    from ..errors import ToxlocError
    from ..support.faults import fault_of

    try:
        app()
    except ToxlocError as error:
        message = str(error)
    except Exception as error:
        fault = fault_of(error)
        if fault is None:
            raise
        message = f"{fault}."
    else:
        return
    terminal(stderr=True).print(alarm("Error: ", message), soft_wrap=True)
    sys.exit(2)
