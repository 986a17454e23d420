"""What a run did: toxicity before and after, cost, and where an edit was cheap."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .style import BASE, COLOURS, METHOD_TITLES, wrapped

COSTS = "#6b7480"
LEGIBLE = {"minsize": 9, "mode": "hide"}  # numbers that do not fit their bar are left to the table and to hovering


def before_after(runs: Sequence[dict[str, Any]]) -> go.Figure:
    """Share of toxic completions by every judge, for each entry of `runs`, with 95% intervals."""
    figure = go.Figure(layout={"xaxis": {"tickangle": 0}})
    for run in runs:
        names = list(run["toxicity"])
        rates = np.array([run["toxicity"][name]["rate"] for name in names])
        cis = np.array([run["toxicity"][name]["rate_ci"] for name in names])
        figure.add_bar(
            name=METHOD_TITLES.get(run["method"], run["method"]), x=[wrapped(name) for name in names], y=rates,
            marker_color=COLOURS.get(run["method"]), text=[f"{rate:.1%}" for rate in rates], textposition="inside",
            insidetextanchor="start",
            error_y={"type": "data", "array": cis[:, 1] - rates, "arrayminus": rates - cis[:, 0], "thickness": 1.5,
                     "color": "#d98324"},
            hovertemplate="%{x}: %{y:.1%}<extra>%{fullData.name}</extra>",
        )
    figure.update_layout(**BASE, barmode="group", height=400, uniformtext=LEGIBLE,
                         yaxis={"tickformat": ".0%", "rangemode": "tozero"},
                         legend={"orientation": "h", "y": 1.15})
    return figure


def cost(runs: Sequence[dict[str, Any]]) -> go.Figure:
    """What each method costs on everyday text: rise of perplexity where it was tuned and where it was checked; KL."""
    edited = [run for run in runs if run["method"] != "baseline"]
    figure = make_subplots(rows=1, cols=2, subplot_titles=("perplexity rise", "KL (nats)"),
                           column_widths=[0.6, 0.4], horizontal_spacing=0.18)
    titles = [METHOD_TITLES.get(run["method"], run["method"]) for run in edited]
    tuned = [run["config"].get("tuned_perplexity_ratio", float("nan")) - 1 for run in edited]
    checked = [run["fluency"]["perplexity_ratio"] - 1 for run in edited]
    for name, values, colour in (("on the tuning text", tuned, "#b3bac4"), ("on unseen text", checked, COSTS)):
        figure.add_bar(row=1, col=1, name=name, x=titles, y=values, marker_color=colour,
                       text=[f"{v:+.2%}" for v in values], textposition="auto",
                       hovertemplate="%{x}: %{y:+.2%}<extra>%{fullData.name}</extra>")
    figure.add_bar(row=1, col=2, name="KL", x=titles, y=[run["fluency"]["kl"] for run in edited],
                   marker_color=COSTS, showlegend=False, hovertemplate="%{x}: %{y:.3g} nats<extra></extra>")
    figure.update_layout(**BASE, barmode="group", height=340, uniformtext=LEGIBLE,
                         legend={"orientation": "h", "y": -0.2})
    figure.update_xaxes(tickangle=0)
    figure.update_yaxes(tickformat=".1%", row=1, col=1)
    return figure


def editability(values: dict[int, float]) -> go.Figure:
    """TRNE's gain per unit of change on neutral text (σ₁), by layer."""
    layers = sorted(values)
    figure = go.Figure(go.Scatter(x=layers, y=[values[layer] for layer in layers], mode="lines+markers",
                                  line={"color": COLOURS["trne"]}, hovertemplate="layer %{x}: %{y:.3g}<extra></extra>"))
    figure.update_layout(**BASE, height=280, xaxis={"title": "layer", "dtick": 1 if len(layers) <= 16 else None},
                         yaxis={"title": "editability", "rangemode": "tozero"})
    return figure
