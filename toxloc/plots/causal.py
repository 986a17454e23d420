"""Figures of the causal test: the effects of removing layers and neurons."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .protocols import CausalProof, Faithfulness, FaithfulnessCurve, Knockout, KnockoutCurve
from .style import BLUE, GREY, LEGEND_BELOW, OKABE_ITO, VERMILLION, band, interval, lay_out, lines, plain

EFFECT = "effect<br>(nats per token)"
TICKS_UP_TO = 8


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
        "Effect: rise of the NLL of toxic minus neutral text; bars are 95% intervals. Random neurons have the "
        "same layers and similar activation sizes.",
        height=140 + (230, 400, 550)[len(panels) - 1],
        legend=LEGEND_BELOW,
    )


def faithfulness(result: Faithfulness) -> go.Figure:
    """Draw faithfulness over the share of units: the highest-scoring units kept above, and removed below.

    Bands are 95% intervals. Grey lines are the random controls of all scores, one line per draw.

    Args:
        result: the curves, as `toxloc.faithfulness` returns them.

    Example:
        >>> faithfulness(toxloc.faithfulness(lm, held_out, loc))     # doctest: +SKIP
    """
    shares = np.array(result.shares)
    colours = {
        name: OKABE_ITO[i % len(OKABE_ITO)] for i, name in enumerate(dict.fromkeys(c.score for c in result.curves))
    }
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    grey_shown = False
    panels = (("kept", "only these are kept"), ("removed", "these are removed"))
    for row, (order, title) in enumerate(panels, start=1):
        curves = [curve for curve in result.curves if curve.order == order]
        for draw in (draw for curve in curves for draw in curve.controls):
            figure.add_scatter(
                row=row,
                col=1,
                x=shares,
                y=draw,
                mode="lines",
                line={"color": GREY, "width": 1},
                opacity=0.7,
                name="random units",
                legendgroup="random",
                legendrank=2000,
                showlegend=not grey_shown,
                hovertemplate="random units, %{x:.1%}: %{y:.2f}<extra></extra>",
            )
            grey_shown = True
        for curve in curves:
            colour = colours[curve.score]
            shade = band(shares, curve.low, curve.high, colour, 0.15, legendgroup=curve.score, showlegend=False)
            figure.add_trace(shade, row=row, col=1)
            figure.add_scatter(
                row=row,
                col=1,
                x=shares,
                y=curve.faithfulness,
                mode="lines+markers",
                line={"color": colour},
                marker={"size": 7},
                name=plain(curve.score_title),
                legendgroup=curve.score,
                showlegend=row == 1,
                text=_faithful(result, curve),
                hovertemplate="%{text}<extra></extra>",
            )
        figure.add_hline(1, row=row, col=1, line={"color": GREY, "width": 1, "dash": "dash"})
        figure.update_yaxes(row=row, col=1, title_text=f"faithfulness if<br>{title}", zerolinecolor=GREY)
    ticks = [share for share in (0.001, 0.01, 0.1, 1.0) if shares[0] <= share <= shares[-1]] or list(shares)
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{share:.3g}" for share in 100 * np.array(ticks)])
    figure.update_xaxes(row=2, col=1, title_text="units with the highest scores (%, log scale)")
    return lay_out(
        figure,
        "Do few units carry the preference for toxic text?",
        f"1: as in the whole model; 0: as without any unit. {result.n_pairs} pairs; bands are 95% intervals. Random "
        "units have the same sites and similar activation sizes.",
        height=560,
        legend=LEGEND_BELOW,
    )


def knockout_layers(proof: CausalProof) -> go.Figure:
    """Draw the effect of removing each layer with its 95% interval; a bar is pale if the interval includes 0."""
    layers: list[Any] = [k.layers[0] for k in proof.layers]
    if len(set(layers)) < len(layers):  # experts of the same layers
        layers = [site.title.removeprefix("layer ") for k in proof.layers for site in k.sites[:1]]
    pale = [k.effect_ci[0] <= 0 <= k.effect_ci[1] for k in proof.layers]
    figure = go.Figure(
        go.Bar(
            x=layers,
            y=[k.effect for k in proof.layers],
            error_y=_errors(proof.layers),
            marker={
                "color": [VERMILLION if k.effect > 0 else BLUE for k in proof.layers],
                "opacity": [0.35 if p else 1.0 for p in pale],
            },
            text=[_hover(k) for k in proof.layers],
            textposition="none",
            hovertemplate="layer %{x}<br>%{text}<extra></extra>",
        )
    )
    return lay_out(
        figure,
        "Effect of removing each layer",
        "Above 0: toxic text loses more likelihood than neutral text, so the layer carries toxicity. Error bars: "
        "95% intervals. Pale: the interval includes 0.",
        height=360,
        xaxis={"title": {"text": "layer removed"}, "dtick": 1 if len(layers) <= 16 else None},
        yaxis={"title": {"text": "effect (nats per token)"}, "zerolinecolor": GREY},
    )


def causal_correlations(proof: CausalProof) -> go.Figure:
    """Draw the rank correlation of each score with the effect of removal, over layers and over neurons."""
    titles = {c.score: c.score_title for c in proof.correlations}
    scores = list(titles)
    figure = go.Figure()
    for parts, colour, symbol, offset in (("layers", BLUE, "circle", -0.14), ("neurons", VERMILLION, "diamond", 0.14)):
        correlations = [c for c in proof.correlations if c.parts == parts]
        if not correlations:
            continue
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
        "1: the score orders parts exactly by effect; 0: no relation. Bars are 95% intervals over parts.",
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


def _faithful(result: Faithfulness, curve: FaithfulnessCurve) -> list[str]:
    return [
        f"{plain(curve.score_title)}: {count} units ({share:.1%}) {curve.order}<br>faithfulness {f:.2f}, "
        + interval(low, high, ".2f")
        for count, share, f, low, high in zip(
            result.counts, result.shares, curve.faithfulness, curve.low, curve.high, strict=True
        )
    ]


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
