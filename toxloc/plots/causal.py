"""Figures of the causal test: the effects of removing layers and neurons."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .protocols import CausalProof, Knockout, KnockoutCurve
from .style import (
    BLUE,
    GREY,
    LEGEND_BELOW,
    VERMILLION,
    asked,
    below_titles,
    capital,
    interval,
    lay_out,
    layer_ticks,
    lines,
    part_title,
    plain,
)

EFFECT = "effect<br>(nats per token)"
TICKS_UP_TO = 8
SIDES = (("toxic text", VERMILLION, "circle"), ("neutral text", BLUE, "diamond-open"))  # name, colour, symbol


def removal_curve(curve: KnockoutCurve) -> go.Figure:
    """Draw the effect of removing increasing numbers of neurons: those with the highest scores, and random neurons.

    The panels show the effect (rise of the NLL of toxic text minus rise of the NLL of neutral text) with its 95%
    interval, the perplexity of everyday text as a multiple of the unedited model's, if it was measured, and the share
    of toxic completions, if completions were sampled.
    """
    order = np.argsort(curve.counts, kind="stable")
    counts = [curve.counts[i] for i in order]
    ordered, controls = [curve.ordered[i] for i in order], [curve.controls[i] for i in order]
    panels: list[tuple[str, str, Callable[[Knockout], Any]]] = [(EFFECT, ".3g", lambda k: k.effect)]
    if all(k.perplexity_ratio is not None for k in ordered):
        panels.append(("perplexity<br>(× unedited)", ".3f", lambda k: k.perplexity_ratio))
    if all(k.toxic_rate is not None for k in ordered):
        panels.append(("toxic<br>completions", ".1%", lambda k: k.toxic_rate))
    figure = make_subplots(
        rows=len(panels), cols=1, shared_xaxes=True, vertical_spacing=0.06, row_heights=[1.6, 1, 1][: len(panels)]
    )
    for row, (title, form, value) in enumerate(panels, start=1):
        first = row == 1
        random = [[value(k) for k in draws] for draws in controls]
        figure.add_scatter(
            row=row,
            col=1,
            x=[n for n, draws in zip(counts, random, strict=True) for _ in draws],
            y=[v for draws in random for v in draws],
            mode="markers",
            marker={"color": GREY, "size": 6, "opacity": 0.6},
            name="random neurons, single draws",
            legendgroup="draws",
            showlegend=first and any(random),
            hovertemplate=f"%{{x}} random neurons: %{{y:{form}}}<extra></extra>",
        )
        figure.add_scatter(
            row=row,
            col=1,
            x=[n for n, draws in zip(counts, random, strict=True) if draws],
            y=[float(np.mean(draws)) for draws in random if draws],
            mode="lines",
            line={"color": GREY},
            name="random neurons, mean",
            legendgroup="mean",
            showlegend=first and any(random),
            hovertemplate=f"%{{x}} random neurons, mean: %{{y:{form}}}<extra></extra>",
        )
        figure.add_scatter(
            row=row,
            col=1,
            x=counts,
            y=[value(k) for k in ordered],
            mode="lines+markers",
            error_y=_errors(ordered) if first else None,
            line={"color": VERMILLION},
            marker={"size": 8},
            name=f"highest {plain(curve.score_title)}",
            legendgroup="ordered",
            legendrank=1,
            showlegend=first,
            text=[_hover(k) for k in ordered],
            hovertemplate="%{x} neurons<br>%{text}<extra></extra>",
        )
        figure.update_yaxes(row=row, col=1, title_text=title, zerolinecolor=GREY)
        if title.startswith("perplexity"):
            figure.update_yaxes(row=row, col=1, type="log", nticks=5)
        elif form.endswith("%"):
            figure.update_yaxes(row=row, col=1, tickformat=".0%", rangemode="tozero")
            figure.add_hline(
                ordered[0].toxic_rate_before,
                row=row,
                col=1,
                line={"color": BLUE, "dash": "dash"},
                annotation={"text": "unedited", "yanchor": "bottom"},
            )
    ticks = counts[:: -(-len(counts) // TICKS_UP_TO)]
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{n}" for n in ticks])
    figure.update_xaxes(row=len(panels), col=1, title_text="neurons removed (log scale)")
    return lay_out(
        figure,
        f"Removing neurons by {curve.score_title}",
        asked(
            "do these neurons carry more toxicity than random neurons?",
            "Effect: rise of the NLL of toxic minus neutral text; bars are 95% intervals. Random neurons have the "
            "same layers and similar activation sizes.",
        ),
        height=140 + (230, 400, 550)[len(panels) - 1],
        legend=LEGEND_BELOW,
    )


def knockout_layers(proof: CausalProof) -> go.Figure:
    """Draw the effect of removing each layer: a column of panels for every part, such as MLPs and attentions.

    The upper panels show how much the NLL of toxic and of neutral text rises, and the lower panels the difference,
    which is the effect, with its 95% interval; a bar is pale if the interval includes 0. If a removal breaks the model,
    its marks are grey. The axes end at the largest of the other values, and an arrow shows values beyond.
    """
    parts = list(dict.fromkeys(k.sites[0].part for k in proof.layers))
    figure = make_subplots(
        rows=2,
        cols=len(parts) or 1,
        shared_xaxes=True,
        shared_yaxes="rows",
        vertical_spacing=0.06,
        horizontal_spacing=0.04,
        row_heights=[1, 1.3],
        subplot_titles=[capital(part_title(part)) for part in parts],
    )
    tops = _end([rise for k in proof.layers if not k.breaks_model for rise in (k.toxic_rise, k.neutral_rise)])
    ends = _end([end for k in proof.layers if not k.breaks_model for end in (k.effect, *k.effect_ci)])
    for column, part in enumerate(parts, start=1):
        removals = [k for k in proof.layers if k.sites[0].part == part]
        layers: list[Any] = [k.layers[0] for k in removals]
        if len(set(layers)) < len(layers):  # experts of the same layers
            layers = [k.sites[0].title.removeprefix("layer ") for k in removals]
        hover = [f"{k.sites[0].title}<br>{_hover(k)}" for k in removals]
        for (name, colour, symbol), rises in zip(
            SIDES, ([k.toxic_rise for k in removals], [k.neutral_rise for k in removals]), strict=True
        ):
            colours = [GREY if k.breaks_model else colour for k in removals]
            figure.add_scatter(
                row=1,
                col=column,
                x=layers,
                y=np.clip(rises, *tops),
                mode="markers",
                name=name,
                showlegend=False,
                cliponaxis=False,
                marker={
                    "size": 9,
                    "color": colours,
                    "line": {"width": 2, "color": colours},
                    "symbol": ["triangle-up" if rise > tops[1] else symbol for rise in rises],
                },
                text=hover,
                hovertemplate="%{text}<extra></extra>",
            )
        figure.add_bar(
            row=2,
            col=column,
            x=layers,
            y=[k.effect for k in removals],
            error_y=_errors(removals),
            marker={
                "color": [GREY if k.breaks_model else VERMILLION if k.effect > 0 else BLUE for k in removals],
                "opacity": [0.35 if k.effect_ci[0] <= 0 <= k.effect_ci[1] else 1.0 for k in removals],
                "pattern": {"shape": ["/" if k.breaks_model else "" for k in removals]},
            },
            name="difference",
            showlegend=False,
            hovertext=hover,
            hovertemplate="%{hovertext}<extra></extra>",
        )
        for x, k in zip(layers, removals, strict=True):
            if k.breaks_model:
                figure.add_annotation(
                    row=1,
                    col=column,
                    x=x,
                    y=tops[1],
                    text=f"{k.neutral_rise:+.2g}, breaks the model",
                    textangle=-90,
                    yanchor="top",
                    yshift=-8,
                    showarrow=False,
                    font={"size": 11},
                )
        figure.update_xaxes(row=2, col=column, title_text="layer removed", **layer_ticks(len(layers)))
    for name, colour, symbol in SIDES:  # in the legend, also if the first removal breaks the model
        marker = {"size": 9, "color": colour, "line": {"width": 2, "color": colour}, "symbol": symbol}
        figure.add_scatter(row=1, col=1, x=[None], y=[None], mode="markers", name=name, marker=marker)
    figure.update_xaxes(zeroline=False)
    figure.update_yaxes(row=1, range=_padded(tops), zerolinecolor=GREY)
    figure.update_yaxes(row=2, range=_padded(ends), zerolinecolor=GREY)
    figure.update_yaxes(row=1, col=1, title_text="rise of NLL<br>(nats per token)")
    figure.update_yaxes(row=2, col=1, title_text="toxic minus neutral<br>(nats per token)")
    note = "Below: the difference with its 95% interval; above 0, the layer carries toxicity. Pale: the interval has 0."
    if any(k.breaks_model for k in proof.layers):
        note += " Grey, hatched: without the layer the model breaks, so the difference says little."
    figure = lay_out(
        figure,
        "Effect of removing each layer",
        asked("does toxic text lose more likelihood than neutral text if the layer is removed?", note),
        height=480,
        legend=LEGEND_BELOW,
        showlegend=True,
    )
    return below_titles(figure)


def _end(values: Sequence[float]) -> tuple[float, float]:
    """Return the lowest and the highest value that an axis shows; 0 is always shown."""
    return min(0.0, *values), max(0.0, *values)


def _padded(ends: tuple[float, float]) -> list[float]:
    """Return the range of an axis with some space around its lowest and highest value."""
    space = 0.06 * ((ends[1] - ends[0]) or 1.0)
    return [ends[0] - space, ends[1] + space]


def causal_correlations(proof: CausalProof) -> go.Figure:
    """Draw the rank correlation of each score with the effect of removal, over layers and over neurons."""
    titles = {c.score: c.score_title for c in proof.correlations}
    scores = list(titles)
    figure = go.Figure()
    styles = ((BLUE, "circle", -0.14), (VERMILLION, "diamond", 0.14))
    kinds = dict.fromkeys(c.parts for c in proof.correlations)
    for parts, (colour, symbol, offset) in zip(kinds, styles, strict=False):
        correlations = [c for c in proof.correlations if c.parts == parts]
        figure.add_scatter(
            x=[c.spearman for c in correlations],
            y=[scores.index(c.score) + offset for c in correlations],
            mode="markers",
            name=f"{parts} (n = {correlations[0].n})",
            marker={"color": colour, "size": 10, "symbol": symbol},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [c.ci[1] - c.spearman for c in correlations],
                "arrayminus": [c.spearman - c.ci[0] for c in correlations],
                "thickness": 1.5,
            },
            text=[
                f"{plain(c.score_title)}, {c.n} {parts}<br>ρ {c.spearman:.2f}, {interval(*c.ci, '.2f')}"
                for c in correlations
            ],
            hovertemplate="%{text}<extra></extra>",
        )
    figure.add_vline(0, line={"color": GREY, "width": 1})
    return lay_out(
        figure,
        "Rank correlation of scores with the effect of removal",
        asked(
            "does a high score mean a large effect of removal?",
            "1: the score orders parts exactly by effect; 0: no relation. Bars are 95% intervals over parts.",
        ),
        height=130 + 46 * max(3, len(scores)),
        xaxis={
            "title": {"text": "Spearman's ρ of score and effect"},
            "range": [-1.05, 1.05],
            "dtick": 0.5,
            "zeroline": False,
        },
        yaxis={
            "tickvals": list(range(len(scores))),
            "ticktext": [lines(title, 14) for title in titles.values()],
            "range": [len(scores) - 0.5, -0.5],
            "zeroline": False,
        },
        legend=LEGEND_BELOW,
        showlegend=True,
    )


def _errors(knockouts: Sequence[Knockout]) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [k.effect_ci[1] - k.effect for k in knockouts],
        "arrayminus": [k.effect - k.effect_ci[0] for k in knockouts],
        "thickness": 1.5,
        "color": GREY,
    }


def _hover(k: Knockout) -> str:
    parts = [
        f"effect {k.effect:.3g} nats per token",
        interval(*k.effect_ci),
        f"NLL of toxic text {k.toxic_rise:+.3g}, of neutral text {k.neutral_rise:+.3g}",
    ]
    if k.perplexity_ratio is not None:
        parts.append(f"perplexity {k.perplexity_ratio - 1:+.2%}")
    if k.toxic_rate is not None:
        parts.append(f"toxic completions {k.toxic_rate:.1%}, before {k.toxic_rate_before:.1%}")
    return "<br>".join(parts)
