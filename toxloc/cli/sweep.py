"""`toxloc sweep`: run a grid of configurations."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from .options import EXECUTION, MEASUREMENT
from .output import alarm, stopping, terminal

if TYPE_CHECKING:
    from ..sweeps.grid import Cell, Plan
    from ..sweeps.store import Store
    from ..sweeps.summary import Summary


def sweep(
    grid: Annotated[Path, typer.Argument(help="YAML file with the models, benchmarks, methods with settings, ...")],
    out: Annotated[
        str | None,
        typer.Option(
            help="Folder for the results; an earlier sweep in it is continued. Default: toxloc-runs/ and the grid's "
            "name.",
            rich_help_panel=EXECUTION,
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            help="Folder that relative paths in the grid start from. Default: the grid's folder.",
            rich_help_panel=EXECUTION,
        ),
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(
            min=1, help="Number of workers that run at the same time on this machine.", rich_help_panel=MEASUREMENT
        ),
    ] = 1,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Use the Ray cluster at ADDRESS (auto: the cluster that runs here; local: start a cluster on this "
            "machine). All machines of the cluster must see the folder --out.",
            rich_help_panel=MEASUREMENT,
        ),
    ] = None,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Compute cells again that failed before.", rich_help_panel=MEASUREMENT),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the grid, list the cells and exit.", rich_help_panel=MEASUREMENT)
    ] = False,
) -> None:
    """Fit and judge every configuration (cell) of a grid. Finished cells stay finished, even if the sweep is killed.

    Cells with the same model, contrast set and seed share the localization and the results of the unedited model. If a
    cell fails, its error is saved, and the other cells continue.
    """
    console = terminal(stderr=True)
    with console.status("checking the grid"):
        from ..sweeps.grid import Plan, load_grid

        checked = load_grid(grid)  # refuses invalid keys and settings before torch is imported
        from ..models.loading import pick_device
        from ..sweeps.runner import sweep as run_sweep
        from ..sweeps.store import Store

        if ray is None:
            pick_device(checked.device)
        plan = Plan(checked, root if root is not None else grid.parent, grid.stem)
    if dry_run:
        _list(plan.cells)
        terminal().print(_size_and_progress(plan), soft_wrap=True)
        return
    folder = out or f"toxloc-runs/{grid.stem}"
    store = Store(folder)
    console.print(_size_and_progress(plan, store), soft_wrap=True)
    with (
        stopping("Finished cells are kept; run the same command to continue."),
        _Display(console, plan.cells, store) as display,
    ):
        summary = run_sweep(plan, folder, jobs=jobs, ray=ray, retry_failed=retry_failed, on_settled=display.settled)
    _print(summary)
    terminal().print(f"Saved: {folder}/summary.html, results.csv, results.parquet", soft_wrap=True)
    if summary.failures:
        count, (cell, error) = len(summary.failures), summary.failures[0]
        console.print(
            alarm(
                f"{count} {'cell' if count == 1 else 'cells'} failed",
                f"; the first ({cell.model}, {cell.benchmark}, "
                f"{cell.treatment}): {error} Compute them again with --retry-failed.",
            ),
            soft_wrap=True,
        )
        raise typer.Exit(1)


def _size_and_progress(plan: "Plan", store: "Store | None" = None) -> str:
    """Return one line: the numbers of factors and cells and, with a store, of cells that are done, failed and open."""
    g = plan.grid
    factors = {
        "model": len(g.models),
        "contrast set": len(g.contrasts),
        "seed": len(g.seeds),
        "setting": sum(len(list(entry.variants())) for entry in g.methods),
        "benchmark": len(g.benchmarks),
    }
    counts = " × ".join(f"{n} {name}" + "s" * (n != 1) for name, n in factors.items()) + f" = {len(plan.cells)} cells"
    if store is None:
        return counts
    failed = sum(store.has_failed(cell) for cell in plan.cells)
    left = len(store.open_cells(plan.cells))
    return f"{counts}; {len(plan.cells) - failed - left} done, {failed} failed before, {left} to do"


def _list(cells: "list[Cell]") -> None:
    table = Table("id", "model", "contrast", "seed", "method and settings", "benchmark")
    for cell in cells:
        table.add_row(cell.id, cell.model, cell.contrast, str(cell.seed), cell.treatment, cell.benchmark)
    terminal().print(table)


class _Display:
    """A progress bar with the remaining time, and a line for every cell that finishes or fails."""

    def __init__(self, console: Console, cells: "list[Cell]", store: "Store"):
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.progress = Progress(
            TextColumn("cells"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            disable=not console.is_terminal,
        )
        self.console, self.count = console, len(cells)
        self.done = self.count - len(store.open_cells(cells))
        self.task = self.progress.add_task("cells", total=self.count - self.done)

    def __enter__(self) -> "_Display":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def settled(self, cell: "Cell", store: "Store") -> None:
        """Advance the bar, and print the result or the error of a cell."""
        self.done += 1
        self.progress.advance(self.task)
        name = f"{self.done}/{self.count} {cell.model}, {cell.benchmark}: {cell.treatment}, seed {cell.seed}"
        if store.has_failed(cell):
            self.console.print(alarm("failed: ", f"{name}: {store.failure(cell)['error']}"), soft_wrap=True)
            return
        result = store.result(cell)
        before, after = (entry["toxicity"]["any"]["rate"] for entry in (result["baseline"], result))
        self.console.print(
            f"{name}: {before:.1%} → {after:.1%} toxic, {result['fluency']['perplexity_ratio'] - 1:+.1%} perplexity, "
            f"{sum(result['seconds'].values()):.0f} s, {result['peak_memory']['resident_mb'] or 0:.0f} MB",
            soft_wrap=True,
        )


def _print(summary: "Summary") -> None:
    from ..support.names import short_name

    console = terminal()
    rows = summary.best()
    # Columns that tell rows apart, if their values differ.
    varying = [name for name in ("contrast", "seed", "budget") if len({str(row[name]) for row in rows}) > 1]
    best = Table(
        *("model", *varying, "benchmark", "before", "best setting", "after", "change", "perplexity"),
        title="Toxic by any evaluator",
    )
    for row in rows:
        change = f"{row['change']['relative']:+.0%}" if row["change"] else "–"
        best.add_row(
            short_name(row["model"]),
            *(short_name(str(row[name])) for name in varying),
            row["benchmark"],
            f"{row['before']:.1%}",
            row["best"],
            f"{row['after']:.1%}",
            change,
            f"{row['perplexity_ratio'] - 1:+.1%}",
        )
    console.print(best)
    ranks = Table("setting", "cells", "mean rank", "mean change", "mean perplexity", title="Mean rank of each setting")
    for row in summary.ranks():
        change = "–" if row["mean_change"] is None else f"{row['mean_change']:+.0%}"
        ranks.add_row(
            row["treatment"],
            str(row["n"]),
            f"{row['mean_rank']:.1f}",
            change,
            f"{row['mean_perplexity_ratio'] - 1:+.1%}",
        )
    console.print(ranks)
