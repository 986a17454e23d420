"""Figure of a value per layer and token of one text."""

import numpy as np
import plotly.graph_objects as go

from ..errors import ToxlocError
from .protocols import TokenView
from .style import DIVERGING, asked, colour_bar, lay_out, token_axis

UNITS = {"attribution": "nats", "activation": "sd"}
QUESTIONS = {
    "attribution": "where in this text does each layer push towards toxicity?",
    "activation": "where in this text does each layer behave as on toxic text?",
}


def token_heatmap(view: TokenView, kind: str = "attribution", masked: bool = True) -> go.Figure:
    """Draw a heatmap of one value per layer and token of a text.

    The colour scale is set by the positions after the first, because the first position can be an attention sink with
    values far larger than all others.

    Args:
        view: the values of one text.
        kind: "attribution" (nats) or "activation" (standard deviations).
        masked: whether to mask words; False shows offensive text.

    Raises:
        ToxlocError: `kind` is unknown, or the view was computed without it.

    Example:
        >>> token_heatmap(view)     # doctest: +SKIP
    """
    if kind not in UNITS:
        raise ToxlocError(f"Unknown kind {kind!r}; choose from {', '.join(UNITS)}.")
    values = view.attribution if kind == "attribution" else view.activation
    if values is None:
        raise ToxlocError(
            "This view has no activation; make it with token_view(lm, text, statistics), or plot kind='attribution'."
        )
    labels, axis = token_axis(view.shown(masked))
    hover = [f"position {position}: {label}" for position, label in enumerate(labels)]
    limit = float(np.abs(values[:, 1:] if len(labels) > 1 else values).max()) or 1.0
    notes = ["Words are masked."] if masked else []
    if np.abs(values).max() > limit:
        notes.append("The first position is beyond the colour scale.")
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=[str(position) for position in range(len(labels))],
            y=[f"layer {layer}" for layer in view.layers or range(len(values))],
            text=[hover] * len(values),
            zmin=-limit,
            zmax=limit,
            colorscale=DIVERGING,
            colorbar=colour_bar(f"{kind} ({UNITS[kind]})"),
            hovertemplate=f"%{{y}}, %{{text}}<br>{kind} %{{z:.3g}} {UNITS[kind]}<extra></extra>",
        )
    )
    return lay_out(
        figure,
        f"{kind.capitalize()} by token and layer",
        asked(QUESTIONS[kind], " ".join(notes)),
        height=190 + 22 * max(8, len(values)),
        yaxis={"autorange": "reversed"},
        xaxis=axis | {"title": {"text": "token, in order"}},
    )
