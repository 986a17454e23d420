"""`toxloc run`: run the full pipeline."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..runs.settings import RunSettings
from .from_settings import takes
from .options import EXECUTION
from .output import interval, stopping, terminal


@takes(RunSettings)
def run(
    settings: RunSettings,
    out: Annotated[
        str | None,
        typer.Option(help="Folder for the results. Default: a new folder in toxloc-runs.", rich_help_panel=EXECUTION),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace --out when the run is complete, if it is not empty.", rich_help_panel=EXECUTION
        ),
    ] = False,
) -> None:
    """Localize toxicity, turn it down with Meow2X and TRNE, and write a report of the effect and the cost.

    Without options, the command runs on the small model that comes with toxloc. This takes under three minutes on two
    cores and needs no network. **The sampled texts are offensive by nature**; the report masks them until they are
    clicked.
    """
    from ..runs.run import run as run_all
    from ..support.files import check_free

    if out is not None:
        check_free(Path(out), overwrite)
    console = terminal(stderr=True)
    with console.status("loading libraries"):
        from ..runs import pipeline as pipeline
        from ..support.progress import shown
    with stopping("Nothing was written."), shown(console):
        result = run_all(out=out, overwrite=overwrite, settings=settings)
    table = Table(
        "method", "toxic by any", "change", "perplexity", title=f"{result.results['model']}, seed {settings.seed}"
    )
    for entry in result.results["runs"]:
        figures, change = entry["toxicity"]["any"], (entry.get("change") or {}).get("any")
        table.add_row(
            entry["method"],
            interval(figures["rate"], figures["rate_ci"]),
            f"{change['relative']:+.0%}" if change else "",
            f"{entry['fluency']['perplexity']:.2f} ({entry['fluency']['perplexity_ratio'] - 1:+.2%})",
        )
    out_console = terminal()
    out_console.print(table)
    out_console.print(result.results["headline"]["text"], soft_wrap=True)
    out_console.print(f"Report: {result.report}", soft_wrap=True)
