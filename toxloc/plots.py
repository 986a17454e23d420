"""Plotly figures: toxicity by depth, neurons, before and after. No figure shows text of a model or a prompt."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float64
from plotly.subplots import make_subplots

from .localization import Localization

SCORE_TITLES = {
    "activation": "activation contrast",
    "gradient_norm": "gradient norm",
    "attribution": "attribution",
}
METHOD_TITLES = {"baseline": "baseline", "meow2x": "Meow2X", "trne": "TRNE"}
DIVERGING = "RdBu_r"
COLOURS = {"baseline": "#8a8f98", "meow2x": "#3b7dd8", "trne": "#1f9d6b"}
_BASE: dict[str, Any] = {"template": "plotly_white", "font": {"family": "system-ui, sans-serif", "size": 13},
                         "margin": {"l": 70, "r": 20, "t": 50, "b": 50},
                         "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)"}


def layer_heatmap(loc: Localization) -> go.Figure:
    """Toxicity by depth: one row a layer, one column a score, coloured by the share of the score's largest value.

    Scores have different units, so each column is divided by its own largest absolute value; the numbers shown are
    the scores themselves.
    """
    columns = [loc.layer_scores(name) for name in loc.scores]
    shares = np.stack([values / (np.abs(values).max() or 1.0) for values in columns], axis=1)
    text = [[f"{values[layer]:.3g}" for values in columns] for layer in range(len(columns[0]))]
    figure = go.Figure(go.Heatmap(
        z=shares, x=[_wrapped(SCORE_TITLES.get(name, name)) for name in loc.scores],
        y=[f"layer {layer}" for layer in range(len(columns[0]))], text=text,
        texttemplate="%{text}" if len(columns[0]) <= 40 else None, customdata=text, zmin=-1, zmax=1,
        colorscale=DIVERGING, colorbar={"title": {"text": "share of<br>largest"}, "thickness": 12},
        hovertemplate="%{y}, %{x}<br>score %{customdata}<br>%{z:.0%} of the largest<extra></extra>",
    ))
    figure.update_layout(**_BASE, title=f"Toxicity by depth in {loc.about['model']}",
                         height=140 + 24 * max(8, len(columns[0])), yaxis={"autorange": "reversed"})
    return figure


def _wrapped(label: str) -> str:
    """Break a label at its first space or hyphen, so that it stays level on a narrow screen."""
    return re.sub(r"([ -])", r"\1<br>", label, count=1)


def neuron_map(loc: Localization, score: str = "attribution", bins: int = 256) -> go.Figure:
    """Layer by neuron: the neurons of each layer sorted by score, so that a row shows how the score is shared out.

    With more than `bins` neurons a cell is the mean of its neighbours in that order, except that the first and the
    last are the extreme neurons themselves.
    """
    values = -np.sort(-loc.neuron_scores(score), axis=1)
    shown = _thin(values, bins)
    limit = float(np.quantile(np.abs(shown), 0.995)) or 1.0
    figure = go.Figure(go.Heatmap(
        z=shown, y=[f"layer {layer}" for layer in range(len(values))],
        x=np.linspace(0, 100, shown.shape[1]), zmin=-limit, zmax=limit, colorscale=DIVERGING,
        colorbar={"title": {"text": "score"}, "thickness": 12, "exponentformat": "power"},
        hovertemplate="%{y}, top %{x:.1f}% of its neurons<br>score %{z:.3g}<extra></extra>",
    ))
    figure.update_layout(**_BASE, title=f"Neurons by {SCORE_TITLES.get(score, score)}",
                         height=140 + 22 * max(8, len(values)), yaxis={"autorange": "reversed"},
                         xaxis={"title": "neurons, highest score first (%)"})
    return figure


def _thin(rows: Float64[np.ndarray, "n_layers d_mlp"], bins: int) -> Float64[np.ndarray, "n_layers bins"]:
    if rows.shape[1] <= bins:
        return rows
    cuts = np.array_split(np.arange(rows.shape[1]), bins)
    thin = np.stack([rows[:, cut].mean(1) for cut in cuts], axis=1)
    thin[:, 0], thin[:, -1] = rows[:, 0], rows[:, -1]
    return thin


def before_after(runs: Sequence[dict[str, Any]]) -> go.Figure:
    """Share of toxic completions by every judge, for each entry of `runs`, with 95% intervals."""
    figure = go.Figure(layout={"xaxis": {"tickangle": 0}})
    for run in runs:
        names = list(run["toxicity"])
        rates = np.array([run["toxicity"][name]["rate"] for name in names])
        cis = np.array([run["toxicity"][name]["rate_ci"] for name in names])
        figure.add_bar(
            name=METHOD_TITLES.get(run["method"], run["method"]), x=[_wrapped(name) for name in names], y=rates,
            marker_color=COLOURS.get(run["method"]), text=[f"{rate:.1%}" for rate in rates], textposition="inside",
            insidetextanchor="start",
            error_y={"type": "data", "array": cis[:, 1] - rates, "arrayminus": rates - cis[:, 0], "thickness": 1.5,
                     "color": "#d98324"},
            hovertemplate="%{x}: %{y:.1%}<extra>%{fullData.name}</extra>",
        )
    figure.update_layout(**_BASE, barmode="group", height=400,
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
    for name, values, opacity in (("on the tuning text", tuned, 0.45), ("on unseen text", checked, 1.0)):
        figure.add_bar(row=1, col=1, name=name, x=titles, y=values, opacity=opacity, marker_color="#5b6470",
                       text=[f"{v:+.2%}" for v in values], textposition="auto",
                       hovertemplate="%{x}: %{y:+.2%}<extra>%{fullData.name}</extra>")
    figure.add_bar(row=1, col=2, name="KL", x=titles, y=[run["fluency"]["kl"] for run in edited],
                   marker_color="#5b6470", showlegend=False, hovertemplate="%{x}: %{y:.3g} nats<extra></extra>")
    figure.update_layout(**_BASE, barmode="group", height=340, legend={"orientation": "h", "y": -0.2})
    figure.update_xaxes(tickangle=0)
    figure.update_yaxes(tickformat=".1%", row=1, col=1)
    return figure


def editability(values: dict[int, float]) -> go.Figure:
    """TRNE's gain per unit of change on neutral text (σ₁), by layer."""
    layers = sorted(values)
    figure = go.Figure(go.Scatter(x=layers, y=[values[layer] for layer in layers], mode="lines+markers",
                                  line={"color": COLOURS["trne"]}, hovertemplate="layer %{x}: %{y:.3g}<extra></extra>"))
    figure.update_layout(**_BASE, height=280, xaxis={"title": "layer", "dtick": 1 if len(layers) <= 16 else None},
                         yaxis={"title": "editability", "rangemode": "tozero"})
    return figure
