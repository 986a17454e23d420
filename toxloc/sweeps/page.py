"""The summary of a sweep as one self-contained HTML file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from .. import plots
from ..localization.result import Localization
from ..support.names import short_name
from ..support.templates import render
from ..version import __version__
from .grid import Cell, Plan


@runtime_checkable
class Results(Protocol):
    """The members of a summary that the page shows.

    Attributes:
        plan: the plan of the sweep.
        results: the finished cells, each with its result.
        failures: the failed cells, each with its error.
        localizations: localization by model, contrast set and seed.
        depths: for each localization and score, the peak and the share of each third of the layers.
    """

    @property
    def plan(self) -> Plan: ...
    @property
    def results(self) -> Sequence[tuple[Cell, dict[str, Any]]]: ...
    @property
    def failures(self) -> Sequence[tuple[Cell, str]]: ...
    @property
    def localizations(self) -> Mapping[tuple[str, str, int], Localization]: ...
    @property
    def depths(self) -> Sequence[object]: ...

    def best(self) -> list[dict[str, Any]]:
        """Return the best setting of each model, benchmark and budget."""

    def ranks(self) -> list[dict[str, Any]]:
        """Return every setting with its mean rank within its budget."""

    def underestimates(self) -> list[dict[str, Any]]:
        """Return how often each evaluator misses toxic completions."""


def write_page(path: Path, summary: Results) -> None:
    """Write the page: effect and cost of every setting, ranks, depth by score, and missed toxic completions.

    Args:
        path: file to write.
        summary: the summary of the sweep.
    """
    results = summary.results
    benchmarks = list(dict.fromkeys(cell.benchmark for cell, _ in results))
    changes = [plots.change_by_setting(results, name) for name in benchmarks]
    path.write_text(
        render(
            "sweep.html.j2",
            s=summary,
            version=__version__,
            plotly_js=get_plotlyjs(),
            best=summary.best(),
            ranks=summary.ranks(),
            under=summary.underestimates(),
            cost=plots.to_html(plots.cost_and_gain(results)) if results else "",
            changes=[(plots.to_html(figure), len(figure.data[0].x)) for figure in changes],
            depths=[plots.to_html(figure) for figure in _depths(summary)],
        ),
        encoding="utf-8",
    )


def _depths(summary: Results) -> list[go.Figure]:
    """Return a figure per score; labels include contrast set and seed if a model was localized more than once."""
    unique = len({model for model, _, _ in summary.localizations}) == len(summary.localizations)
    by_label = {
        short_name(model) + ("" if unique else f", {short_name(contrast)}, seed {seed}"): loc
        for (model, contrast, seed), loc in summary.localizations.items()
    }
    return [plots.relative_depth(by_label, score) for score in summary.plan.grid.scores] if by_label else []
