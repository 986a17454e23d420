"""A sweep's summary as one HTML file that needs nothing else."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from .. import plots
from ..support.names import short_name
from ..support.templates import render
from ..version import __version__

if TYPE_CHECKING:
    from .summary import Summary


def write_page(path: Path, summary: "Summary") -> None:
    """Write the page: depth for every score, before and after for every cell, costs, winners, underestimation."""
    found = summary.results
    benchmarks = list(dict.fromkeys(cell.benchmark for cell, _ in found))
    path.write_text(render(
        "sweep.html.j2", html=True, s=summary, version=__version__, plotly_js=get_plotlyjs(),
        best=summary.best(), ranks=summary.ranks(),
        under=summary.underestimates(), cost=plots.to_html(plots.cost_and_gain(found)) if found else "",
        changes=[(plots.to_html(figure), len(figure.data[0].x)) for figure in
                 (plots.change_by_setting(found, name) for name in benchmarks)],
        depths=[plots.to_html(one) for one in _depths(summary)],
    ), encoding="utf-8")


def _depths(summary: "Summary") -> list[go.Figure]:
    several = {name for name, _, _ in summary.localizations}
    tell: dict[str, Any] = {}
    for (model, contrast, seed), loc in summary.localizations.items():
        alone = len(several) == len(summary.localizations)
        tell[short_name(model) + ("" if alone else f", {short_name(contrast)}, seed {seed}")] = loc
    return [plots.relative_depth(tell, score) for score in summary.plan.grid.scores] if tell else []
