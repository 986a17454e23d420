"""Figures of a run: toxicity before and after, cost, and editability by layer."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .style import GREY, LEGEND_BELOW, OKABE_ITO, asked, below_titles, lay_out, layer_axis, plain, wrapped

COSTS = "#6b7480"
EDITABILITY = "#1f9d6b"
LEGIBLE = {"minsize": 9, "mode": "hide"}  # hide numbers that do not fit their bar; table and hover text show them
RENAMED = {"both": "all"}  # older files call the verdict of all evaluators "both"


def run_title(run: Mapping[str, Any]) -> str:
    """Return the title of the method of an entry of `runs`, or its name if the file has no titles.

    Example:
        >>> run_title({"method": "trne", "title": "TRNE"}), run_title({"method": "trne"})
        ('TRNE', 'trne')
    """
    return str(run.get("title") or run["method"])


def run_colours(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the colour of every entry: its "colour" if it has one, else grey for the baseline, else from the palette.

    Example:
        >>> run_colours([{"method": "baseline"}, {"method": "trne", "colour": "#1f9d6b"}, {"method": "mine"}])
        ['#8a8f98', '#1f9d6b', '#0072B2']
    """
    colours, drawn = [], 0
    for run in runs:
        if colour := run.get("colour"):
            colours.append(str(colour))
        elif run["method"] == "baseline":
            colours.append(GREY)
        else:
            colours.append(OKABE_ITO[drawn % len(OKABE_ITO)])
            drawn += 1
    return colours


def before_after(runs: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Draw the share of completions that each evaluator calls toxic, for each entry of `runs`, with 95% intervals.

    Args:
        runs: entries as in results.json or from `Evaluation.to_dict`; "title" and "colour" are optional.

    Example:
        >>> before_after([before.to_dict(), after.to_dict()])     # doctest: +SKIP
    """
    figure = go.Figure(layout={"xaxis": {"tickangle": 0, "tickfont": {"size": 11}}})
    for run, colour in zip(runs, run_colours(runs), strict=True):
        names = list(run["toxicity"])
        rates = np.array([run["toxicity"][name]["rate"] for name in names])
        cis = np.array([run["toxicity"][name]["rate_ci"] for name in names])
        figure.add_bar(
            name=plain(run_title(run)),
            x=[wrapped(RENAMED.get(name, name)) for name in names],
            y=rates,
            marker_color=colour,
            text=[f"{rate:.1%}" for rate in rates],
            textposition="inside",
            insidetextanchor="start",
            error_y={
                "type": "data",
                "array": cis[:, 1] - rates,
                "arrayminus": rates - cis[:, 0],
                "thickness": 1.5,
                "color": "#d98324",
            },
            hovertemplate="%{x}: %{y:.1%}<extra>%{fullData.name}</extra>",
        )
    return lay_out(
        figure,
        "Toxic completions",
        asked("how often does the model write toxic text?", "Bars are 95% intervals over prompts."),
        height=380,
        barmode="group",
        uniformtext=LEGIBLE,
        yaxis={"tickformat": ".0%", "rangemode": "tozero"},
        legend=LEGEND_BELOW,
    )


def cost(runs: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Draw the cost of each method on everyday text: rise of perplexity on the tuning text and on unseen text, and KL.

    Args:
        runs: entries as in results.json or from `Evaluation.to_dict`; the baseline is left out.

    Example:
        >>> cost([before.to_dict(), after.to_dict()])     # doctest: +SKIP
    """
    edited = [run for run in runs if run["method"] != "baseline"]
    figure = make_subplots(
        rows=1,
        cols=2,
        subplot_titles=("perplexity rise", "KL (nats)"),
        column_widths=[0.6, 0.4],
        horizontal_spacing=0.18,
    )
    titles = [plain(run_title(run)) for run in edited]
    tuned = [run["config"].get("tuned_perplexity_ratio", float("nan")) - 1 for run in edited]
    checked = [run["fluency"]["perplexity_ratio"] - 1 for run in edited]
    for name, values, colour in (("on the tuning text", tuned, "#b3bac4"), ("on unseen text", checked, COSTS)):
        figure.add_bar(
            row=1,
            col=1,
            name=name,
            x=titles,
            y=values,
            marker_color=colour,
            text=[f"{v:+.2%}" for v in values],
            textposition="auto",
            hovertemplate="%{x}: %{y:+.2%}<extra>%{fullData.name}</extra>",
        )
    figure.add_bar(
        row=1,
        col=2,
        name="KL",
        x=titles,
        y=[run["fluency"]["kl"] for run in edited],
        marker_color=COSTS,
        showlegend=False,
        hovertemplate="%{x}: %{y:.3g} nats<extra></extra>",
    )
    lay_out(
        figure,
        "Cost on everyday text",
        asked("how much does each method change text that it should leave alone?"),
        height=340,
        barmode="group",
        uniformtext=LEGIBLE,
        legend=LEGEND_BELOW,
    )
    below_titles(figure).update_xaxes(tickangle=0, tickfont_size=11)
    return figure.update_yaxes(tickformat=".1%", row=1, col=1)


def editability(values: Mapping[int, float]) -> go.Figure:
    """Draw editability per layer: the gain of TRNE per unit of change on neutral text (σ₁).

    Example:
        >>> editability({0: 0.5, 1: 2.0})     # doctest: +SKIP
    """
    layers = sorted(values)
    figure = go.Figure(
        go.Scatter(
            x=layers,
            y=[values[layer] for layer in layers],
            mode="lines+markers",
            line={"color": EDITABILITY},
            hovertemplate="layer %{x}: %{y:.3g}<extra></extra>",
        )
    )
    return lay_out(
        figure,
        "Editability by layer",
        asked("where is an edit cheap?"),
        height=260,
        xaxis=layer_axis(len(layers)),
        yaxis={"title": {"text": "editability"}, "rangemode": "tozero"},
    )
