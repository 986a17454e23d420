"""Figure of faithfulness: how much of the preference for toxic text remains if few units are kept or removed."""

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .protocols import Faithfulness, FaithfulnessCurve
from .style import GREY, LEGEND_BELOW, OKABE_ITO, asked, band, interval, lay_out, plain


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
        "Faithfulness by share of units",
        asked(
            "how much of the preference for toxic text do few units carry?",
            f"1: as in the whole model; 0: as without any unit. {result.n_pairs} pairs; bands are 95% intervals. "
            "Random units have the same sites and similar activation sizes.",
        ),
        height=560,
        legend=LEGEND_BELOW,
    )


def _faithful(result: Faithfulness, curve: FaithfulnessCurve) -> list[str]:
    return [
        f"{plain(curve.score_title)}: {count} units ({share:.1%}) {curve.order}<br>faithfulness {f:.2f}, "
        + interval(low, high, ".2f")
        for count, share, f, low, high in zip(
            result.counts, result.shares, curve.faithfulness, curve.low, curve.high, strict=True
        )
    ]
