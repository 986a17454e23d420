"""Which tokens of a text the layers react to."""

import html

import numpy as np
import plotly.graph_objects as go

from ..errors import ToxlocError
from ..localization.token_view import TokenView
from .style import DIVERGING, colour_bar, lay_out

UNITS = {"attribution": "nats", "activation": "sd"}
LEVEL_UP_TO = 8  # tokens whose labels have room to lie level


def token_heatmap(view: TokenView, kind: str = "attribution", masked: bool = True) -> go.Figure:
    """Position by layer: what each layer does at each token of one text.

    The colours are spread over the positions after the first, which can be an attention sink that dwarfs all others.

    Args:
        view: the numbers of one text.
        kind: "attribution" (nats) or "activation" (standard deviations).
        masked: hide words; switch it off only where offensive text may be seen.

    Raises:
        ToxlocError: an unknown kind, or one that the view lacks.

    Example:
        >>> token_heatmap(view)     # doctest: +SKIP
    """
    if kind not in UNITS:
        raise ToxlocError(f"Unknown kind {kind!r}; choose from {', '.join(UNITS)}.")
    values = view.attribution if kind == "attribution" else view.activation
    if values is None:
        raise ToxlocError("This view has no activation; make it with token_view(lm, text, statistics), "
                          "or plot kind='attribution'.")
    labels = [_visible(token) for token in view.shown(masked)]
    hover = [f"position {position}: {label}" for position, label in enumerate(labels)]
    # Categories, since Plotly leaves out those labels that have no room; numbered, since tokens come twice.
    positions = [str(position) for position in range(len(labels))]
    limit = float(np.abs(values[:, 1:] if len(labels) > 1 else values).max()) or 1.0
    notes = ["Words are masked."] if masked else []
    if np.abs(values).max() > limit:
        notes.append("The first position goes beyond the colours.")
    figure = go.Figure(go.Heatmap(
        z=values, x=positions, y=[f"layer {layer}" for layer in range(len(values))],
        text=[hover] * len(values), zmin=-limit, zmax=limit, colorscale=DIVERGING,
        colorbar=colour_bar(f"{kind} ({UNITS[kind]})"),
        hovertemplate=f"%{{y}}, %{{text}}<br>{kind} %{{z:.3g}} {UNITS[kind]}<extra></extra>",
    ))
    return lay_out(figure, f"{kind.capitalize()} by token and layer", " ".join(notes),
                   height=190 + 22 * max(8, len(values)), yaxis={"autorange": "reversed"},
                   xaxis={"title": {"text": "token, in order"}, "type": "category",
                          "labelalias": dict(zip(positions, labels, strict=True)),
                          "tickangle": 0 if len(labels) <= LEVEL_UP_TO else -90, "tickfont": {"size": 11}})


def _visible(token: str) -> str:
    return html.escape(token.replace("\n", "⏎").strip() or "␣", quote=False)
