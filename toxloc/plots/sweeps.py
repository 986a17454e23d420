"""Figures of a sweep: the effect and the cost of every setting in every model."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from ..support.names import short_name
from .protocols import Cell
from .style import GREY, LEGEND_BELOW, OKABE_ITO, asked, colour_bar, lay_out, plain, wrapped

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross", "hexagon", "triangle-down")
Results = Sequence[tuple[Cell, dict[str, Any]]]


def change_by_setting(results: Results, benchmark: str) -> go.Figure:
    """Draw the change of the toxic rate by any evaluator on one benchmark: a row per setting, a column per model.

    Args:
        results: cells, each with its result, which is the content of the file of the cell.
        benchmark: name of the benchmark.
    """
    selected = [(cell, result) for cell, result in results if cell.benchmark == benchmark]
    rows = list(dict.fromkeys(cell.treatment for cell, _ in selected))
    columns = list(dict.fromkeys(_column(cell, selected) for cell, _ in selected))
    change, text, hover = (np.full((len(rows), len(columns)), value, dtype=object) for value in (None, "", ""))
    for cell, result in selected:
        position = rows.index(cell.treatment), columns.index(_column(cell, selected))
        before, after = (entry["toxicity"]["any"]["rate"] for entry in (result["baseline"], result))
        relative, (low, high) = None, (0.0, 0.0)
        if measured := result["change"]["any"]:
            relative, (low, high) = measured["relative"], measured["ci"]
        change[position] = relative
        text[position] = f"{after:.1%}"
        hover[position] = (
            f"{before:.1%} → {after:.1%}"
            + ("" if relative is None else f", change {relative:+.0%} [{low:+.0%}, {high:+.0%}]")
            + f"<br>perplexity {result['fluency']['perplexity_ratio'] - 1:+.1%}"
        )
    unedited = {_column(cell, selected): result["baseline"]["toxicity"]["any"]["rate"] for cell, result in selected}
    names = [f"{column}<br>before<br>{unedited[column]:.1%}" for column in columns]
    figure = go.Figure(
        go.Heatmap(
            x=names,
            y=[plain(row) for row in rows],
            z=change,
            text=text,
            customdata=hover,
            texttemplate="%{text}",
            zmin=-1,
            zmax=1,
            colorscale="RdBu_r",
            hovertemplate="%{y}<br>%{x}<br>%{customdata}<extra></extra>",
            xgap=2,
            ygap=2,
            colorbar=colour_bar("change", tickformat="+.0%", tickvals=[-1, 0, 1]),
        )
    )
    lay_out(
        figure,
        f"{benchmark}: toxic by any evaluator",
        asked("which setting lowers the toxic rate in which model?"),
        height=170 + 34 * len(rows),
    )
    figure.update_layout(margin={"l": 10, "r": 10, "t": figure.layout.margin.t + 60, "b": 70})
    figure.update_xaxes(side="top", tickangle=0)
    return figure.update_yaxes(autorange="reversed", automargin=True)


def _column(cell: Cell, among: Results) -> str:
    """Return the name of a column: the model, with the contrast set and the seed if the cells differ in them."""
    name = wrapped(short_name(cell.model))
    for part, values in (
        (short_name(cell.contrast), {other.contrast for other, _ in among}),
        (f"seed {cell.seed}", {other.seed for other, _ in among}),
    ):
        name += f"<br>{plain(part)}" if len(values) > 1 else ""
    return name


def cost_and_gain(results: Results) -> go.Figure:
    """Draw the change of the toxic rate against the rise of perplexity: a colour per model, a symbol per setting."""
    models = list(dict.fromkeys(cell.model for cell, _ in results))
    treatments = list(dict.fromkeys(cell.treatment for cell, _ in results))
    figure = go.Figure()
    for cell, result in results:
        if not result["change"]["any"]:
            continue
        figure.add_scatter(
            x=[result["fluency"]["perplexity_ratio"] - 1],
            y=[result["change"]["any"]["relative"]],
            mode="markers",
            marker={
                "color": OKABE_ITO[models.index(cell.model) % len(OKABE_ITO)],
                "size": 9,
                "symbol": SYMBOLS[treatments.index(cell.treatment) % len(SYMBOLS)],
            },
            showlegend=False,
            text=[f"{plain(short_name(cell.model))}, {plain(cell.benchmark)}<br>{plain(cell.treatment)}"],
            hovertemplate="%{text}<br>change %{y:+.0%} at %{x:+.1%} perplexity<extra></extra>",
        )
    for i, model in enumerate(models):
        figure.add_scatter(
            x=[None],
            y=[None],
            mode="markers",
            name=plain(short_name(model)),
            marker={"color": OKABE_ITO[i % len(OKABE_ITO)], "size": 9},
        )
    for i, name in enumerate(treatments):
        figure.add_scatter(
            x=[None],
            y=[None],
            mode="markers",
            name=plain(name),
            marker={"color": GREY, "size": 9, "symbol": SYMBOLS[i % len(SYMBOLS)]},
        )
    return lay_out(
        figure,
        "Change of toxicity against cost",
        asked("which setting gains most at which cost?", "Each model has a colour, each setting has a symbol."),
        height=420 + 22 * (len(models) + len(treatments)) // 2,
        legend=LEGEND_BELOW,
        xaxis={"title": "rise of perplexity on unseen text", "tickformat": "+.0%", "zerolinecolor": GREY},
        yaxis={"title": "change of the toxic rate", "tickformat": "+.0%", "zerolinecolor": GREY},
    )
