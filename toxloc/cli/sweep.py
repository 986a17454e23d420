"""`toxloc sweep`: a grid of configurations."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from .options import HOW, WHERE
from .output import alarm, stopping, terminal

if TYPE_CHECKING:
    from ..sweeps.grid import Cell, Plan
    from ..sweeps.store import Store
    from ..sweeps.summary import Summary


def sweep(
    grid: Annotated[Path, typer.Argument(help="YAML file of models, benchmarks, methods with settings, ...")],
    out: Annotated[
        str | None,
        typer.Option(
            help="Folder for results; the same one goes on. Default: toxloc-runs/ and the grid's name.",
            rich_help_panel=WHERE,
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(help="Where relative paths in the grid start. Default: the grid's folder.", rich_help_panel=WHERE),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Workers at a time on this machine.", rich_help_panel=HOW)] = 1,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Use the Ray cluster at ADDRESS (auto: the one "
            "that runs here; local: start one). --out must be a folder that all of it "
            "sees.",
            rich_help_panel=HOW,
        ),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try cells again that failed.", rich_help_panel=HOW)
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, list the cells and stop.", rich_help_panel=HOW)
    ] = False,
) -> None:
    """Fit and judge every configuration of a grid; what is finished stays finished, whatever happens.

    Cells of one model, contrast set and seed share the localization and the unedited model's results. A cell that
    fails is noted and the rest goes on.
    """
    console = terminal(stderr=True)
    with console.status("checking the grid"):
        from ..sweeps.grid import Plan, load_grid

        read = load_grid(grid)  # wrong keys and settings end here, before torch is imported
        from ..models.loading import pick_device
        from ..sweeps.runner import sweep as run_sweep
        from ..sweeps.store import Store

        if ray is None:
            pick_device(read.device)
        plan = Plan(read, root if root is not None else grid.parent, grid.stem)
    if dry_run:
        _list(plan.cells)
        terminal().print(_described(plan), soft_wrap=True)
        return
    folder = out or f"toxloc-runs/{grid.stem}"
    store = Store(folder)
    console.print(_described(plan, store), soft_wrap=True)
    with stopping("What is finished stays; the same command goes on."), _Display(console, plan.cells, store) as display:
        summary = run_sweep(plan, folder, jobs=jobs, ray=ray, retry_failed=retry_failed, on_settled=display.settled)
    _print(summary)
    terminal().print(f"Saved: {folder}/summary.html, results.csv, results.parquet", soft_wrap=True)
    if summary.failures:
        cell, error = summary.failures[0]
        console.print(
            alarm(
                f"{len(summary.failures)} cells failed",
                f", the first ({cell.model}, {cell.benchmark}, "
                f"{cell.treatment}): {error} Try again with --retry-failed.",
            ),
            soft_wrap=True,
        )
        raise typer.Exit(1)


def _described(plan: "Plan", store: "Store | None" = None) -> str:
    """Say how large a sweep is and how much of it is done, in one line."""
    g = plan.grid
    factors = {
        "model": len(g.models),
        "contrast set": len(g.contrasts),
        "seed": len(g.seeds),
        "setting": sum(len(list(one.variants())) for one in g.methods),
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
    """A bar with the time left, and a line for every cell that is settled."""

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
        """Tell of one cell."""
        self.done += 1
        self.progress.advance(self.task)
        name = f"{self.done}/{self.count} {cell.model}, {cell.benchmark}: {cell.treatment}, seed {cell.seed}"
        if store.has_failed(cell):
            self.console.print(alarm("failed: ", f"{name}: {store.failure(cell)['error']}"), soft_wrap=True)
            return
        found = store.result(cell)
        before, after = (one["toxicity"]["any"]["rate"] for one in (found["baseline"], found))
        self.console.print(
            f"{name}: {before:.1%} → {after:.1%} toxic, {found['fluency']['perplexity_ratio'] - 1:+.1%} perplexity, "
            f"{sum(found['seconds'].values()):.0f} s, {found['peak_memory']['resident_mb'] or 0:.0f} MB",
            soft_wrap=True,
        )


def _print(summary: "Summary") -> None:
    from ..support.names import short_name

    console = terminal()
    best = Table(
        "model",
        "benchmark",
        "before",
        "fewest toxic with",
        "after",
        "change",
        "perplexity",
        title="Toxic by any evaluator",
    )
    for one in summary.best():
        change = f"{one['change']['relative']:+.0%}" if one["change"] else "–"
        best.add_row(
            short_name(one["model"]),
            one["benchmark"],
            f"{one['before']:.1%}",
            one["best"],
            f"{one['after']:.1%}",
            change,
            f"{one['perplexity_ratio'] - 1:+.1%}",
        )
    console.print(best)
    ranks = Table("setting", "cells", "mean rank", "mean change", "mean perplexity", title="Which setting wins")
    for one in summary.ranks():
        change = "–" if one["mean_change"] is None else f"{one['mean_change']:+.0%}"
        ranks.add_row(
            one["treatment"],
            str(one["n"]),
            f"{one['mean_rank']:.1f}",
            change,
            f"{one['mean_perplexity_ratio'] - 1:+.1%}",
        )
    console.print(ranks)
