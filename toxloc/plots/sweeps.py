"""What a sweep found: what every setting does to every model, and what that costs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from ..support.names import short_name
from .style import GREY, LEGEND_BELOW, OKABE_ITO, colour_bar, lay_out, wrapped

if TYPE_CHECKING:
    from ..sweeps.grid import Cell

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross", "hexagon", "triangle-down")
Results = Sequence[tuple["Cell", dict[str, Any]]]


def change_by_setting(results: Results, benchmark: str) -> go.Figure:
    """Change of the toxic rate on one benchmark, by any evaluator, for every setting (rows) and model (columns)."""
    mine = [(cell, result) for cell, result in results if cell.benchmark == benchmark]
    rows = list(dict.fromkeys(cell.treatment for cell, _ in mine))
    columns = list(dict.fromkeys(_column(cell, mine) for cell, _ in mine))
    change, text, hover = (np.full((len(rows), len(columns)), value, dtype=object) for value in (None, "", ""))
    for cell, result in mine:
        at = rows.index(cell.treatment), columns.index(_column(cell, mine))
        before, after = (one["toxicity"]["any"]["rate"] for one in (result["baseline"], result))
        found = result["change"]["any"]
        change[at] = found["relative"] if found else None
        text[at] = f"{after:.1%}"
        hover[at] = (f"{before:.1%} → {after:.1%}" + (f", change {found['relative']:+.0%} [{found['ci'][0]:+.0%}, "
                                                      f"{found['ci'][1]:+.0%}]" if found else "")
                     + f"<br>perplexity {result['fluency']['perplexity_ratio'] - 1:+.1%}")
    unedited = {_column(cell, mine): result["baseline"]["toxicity"]["any"]["rate"] for cell, result in mine}
    names = [f"{column}<br>before<br>{unedited[column]:.1%}" for column in columns]
    figure = go.Figure(go.Heatmap(
        x=names, y=rows, z=change, text=text, customdata=hover, texttemplate="%{text}", zmin=-1, zmax=1,
        colorscale="RdBu_r", hovertemplate="%{y}<br>%{x}<br>%{customdata}<extra></extra>", xgap=2, ygap=2,
        colorbar=colour_bar("change", tickformat="+.0%", tickvals=[-1, 0, 1])))
    lay_out(figure, f"{benchmark}: toxic by any evaluator", height=170 + 34 * len(rows))
    figure.update_layout(margin={"l": 10, "r": 10, "t": figure.layout.margin.t + 60, "b": 70})
    figure.update_xaxes(side="top", tickangle=0)
    return figure.update_yaxes(autorange="reversed", automargin=True)


def _column(cell: "Cell", among: Results) -> str:
    """The model, and whatever else tells columns apart."""
    name = wrapped(short_name(cell.model))
    for part, several in ((short_name(cell.contrast), {one.contrast for one, _ in among}),
                          (f"seed {cell.seed}", {one.seed for one, _ in among})):
        name += f"<br>{part}" if len(several) > 1 else ""
    return name


def cost_and_gain(results: Results) -> go.Figure:
    """Rise of perplexity against change of the toxic rate: a colour a model, a symbol a setting."""
    models = list(dict.fromkeys(cell.model for cell, _ in results))
    treatments = list(dict.fromkeys(cell.treatment for cell, _ in results))
    figure = go.Figure()
    for cell, result in results:
        if not result["change"]["any"]:
            continue
        figure.add_scatter(
            x=[result["fluency"]["perplexity_ratio"] - 1], y=[result["change"]["any"]["relative"]], mode="markers",
            marker={"color": OKABE_ITO[models.index(cell.model) % len(OKABE_ITO)], "size": 9,
                    "symbol": SYMBOLS[treatments.index(cell.treatment) % len(SYMBOLS)]},
            showlegend=False, hovertemplate=f"{short_name(cell.model)}, {cell.benchmark}<br>{cell.treatment}<br>"
                                            "change %{y:+.0%} at %{x:+.1%} perplexity<extra></extra>")
    for i, model in enumerate(models):
        figure.add_scatter(x=[None], y=[None], mode="markers", name=short_name(model),
                           marker={"color": OKABE_ITO[i % len(OKABE_ITO)], "size": 9})
    for i, name in enumerate(treatments):
        figure.add_scatter(x=[None], y=[None], mode="markers", name=name,
                           marker={"color": GREY, "size": 9, "symbol": SYMBOLS[i % len(SYMBOLS)]})
    return lay_out(figure, "What it costs and what it gains", "A colour for each model, a symbol for each setting.",
                   height=420 + 22 * (len(models) + len(treatments)) // 2, legend=LEGEND_BELOW,
                   xaxis={"title": "perplexity on unseen text", "tickformat": "+.0%", "zerolinecolor": GREY},
                   yaxis={"title": "change of the toxic rate", "tickformat": "+.0%", "zerolinecolor": GREY})
