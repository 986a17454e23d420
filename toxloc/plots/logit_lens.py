"""Figure of the logit lens: at which depth the toxic word of a pair becomes likely, for one or several models."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from ..errors import ToxlocError
from ..support.significance import ALPHA
from .protocols import LogitLens
from .style import (
    GREY,
    LEGEND_BELOW,
    asked,
    band,
    interval,
    lay_out,
    line_of,
    mark_thirds,
    plain,
    relative_depth_axis,
    with_unit,
)

COMPARED = {
    "none": "than the neutral word",
    "neutral": "than the neutral word, compared with neutral text",
    "other_prefixes": "than the neutral word, compared with the other pairs' prefixes",
}


def logit_lens(results: Sequence[LogitLens] | Mapping[str, LogitLens]) -> go.Figure:
    """Draw D, the log-probability of the toxic minus that of the neutral word, over relative depth, one line per model.

    A band is the 95% interval. A marker is filled if the p-value of the depth, adjusted for all depths, is below 0.05,
    and open otherwise; a segment is thick if that of the block's step, adjusted for all blocks, is. Without p-values
    all markers are filled and no segment is thick.

    Args:
        results: results of `toxloc.logit_lens` with the same baseline. The keys of a mapping name the lines; lines of a
            sequence have the names of the models.

    Raises:
        ToxlocError: no result was given, or the results have different baselines.

    Example:
        >>> logit_lens([toxloc.logit_lens(lm, pairs) for lm in models])     # doctest: +SKIP
    """
    if not results:
        raise ToxlocError("logit_lens needs at least one result.")
    named = list(results.items()) if isinstance(results, Mapping) else [(lens.model, lens) for lens in results]
    baselines = sorted({lens.baseline for _, lens in named})
    if len(baselines) > 1:
        raise ToxlocError(f"The results have the baselines {' and '.join(baselines)}; give results with one baseline.")
    figure = go.Figure()
    for i, (name, lens) in enumerate(named):
        line, group = line_of(i), {"legendgroup": str(i)}
        depth = np.linspace(0, 1, len(lens.difference))
        if lens.uncertainty is not None:
            low, high = lens.uncertainty.low, lens.uncertainty.high
            figure.add_trace(band(depth, low, high, line["color"], 0.12, showlegend=False, **group))
        if lens.step_uncertainty is not None:
            figure.add_trace(_steps(lens, depth, line["color"], **group))
        significant = None if lens.uncertainty is None else lens.uncertainty.p_adjusted < ALPHA
        figure.add_scatter(
            x=depth,
            y=lens.difference,
            name=plain(name),
            mode="lines+markers",
            line=line,
            marker={
                "size": 8,
                "symbol": "circle" if significant is None else np.where(significant, "circle", "circle-open").tolist(),
                "line": {"width": 2, "color": line["color"]},
            },
            text=[_hover(lens, k) for k in range(len(depth))],
            hovertemplate="%{fullData.name}, %{text}<extra></extra>",
            **group,
        )
    figure.add_hline(0, line={"color": GREY, "width": 1})
    note = ""
    if any(lens.uncertainty is not None for _, lens in named):
        note = f"Bands: 95% intervals. Filled markers, thick segments (single blocks): adjusted p < {ALPHA:g}."
    figure = lay_out(
        figure,
        "Logit lens: toxic minus neutral word by depth",
        asked(f"at which depth does a prefix make the toxic word likelier {COMPARED[baselines[0]]}?", note),
        height=430,
        xaxis=relative_depth_axis("embedding", "output"),
        yaxis={"title": {"text": with_unit("difference of log-probabilities", "nats")}, "zeroline": False},
        legend=LEGEND_BELOW,
        showlegend=True,
    )
    return mark_thirds(figure)


def _steps(lens: LogitLens, depth: np.ndarray, colour: str, **trace: str) -> go.Scatter:
    """Return thick segments over the blocks whose step is significant, with gaps between them."""
    assert lens.step_uncertainty is not None
    ends = np.flatnonzero(lens.step_uncertainty.p_adjusted < ALPHA)[:, None] + np.arange(2)
    x, y = (
        np.pad(values[ends], ((0, 0), (0, 1)), constant_values=np.nan).ravel() for values in (depth, lens.difference)
    )
    return go.Scatter(
        x=x,
        y=y,
        mode="lines",
        line={"color": colour, "width": 8},
        opacity=0.5,
        showlegend=False,
        hoverinfo="skip",
        **trace,
    )


def _hover(lens: LogitLens, depth: int) -> str:
    """Return the text of the marker at a depth: D, and what the block before it adds."""
    last = len(lens.step)
    place = {0: "embedding", last: "output"}.get(depth, f"depth {depth} of {last}")
    parts = [f"{place}<br>difference {lens.difference[depth]:.3g} nats"]
    if lens.uncertainty is not None:
        parts.append(interval(lens.uncertainty.low[depth], lens.uncertainty.high[depth]))
        parts.append(f"z {lens.uncertainty.z[depth]:.1f}, adjusted p {lens.uncertainty.p_adjusted[depth]:.2g}")
    if depth:
        step = f"block {depth - 1} adds {lens.step[depth - 1]:.3g}"
        known = lens.step_uncertainty
        parts.append(step if known is None else f"{step}, adjusted p {known.p_adjusted[depth - 1]:.2g}")
    return "<br>".join(parts)
