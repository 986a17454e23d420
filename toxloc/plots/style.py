"""What all figures share: titles, units, colours, and a layout that reads on a phone and in the dark."""

import html
import re
import textwrap
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float64

from ..localization.scores import SCORES

METHOD_TITLES = {"baseline": "baseline", "meow2x": "Meow2X", "trne": "TRNE"}
SCORE_TITLES = {name: score.title for name, score in SCORES.items()}
SCORE_UNITS = {
    "activation": "pooled sd",
    "gradient_norm": "nats per token and unit of weight",
    "gradient_calibrated": "times its mean under shuffled labels",
    "attribution": "nats per token",
    "combined": "nats per token",
    "auroc": "0.5 is chance",
    "editability": "gain per unit of change on neutral text",
}
# Values that say nothing either way, where that is not 0.
SCORE_CENTRES = {"auroc": 0.5, "gradient_calibrated": 1.0}
ALPHA = 0.05

DIVERGING, SEQUENTIAL = "RdBu_r", "Cividis"
# Okabe and Ito's palette, which colour-blind readers can tell apart; without yellow and black, which a light and a
# dark page swallow.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BLUE, VERMILLION, *_ = OKABE_ITO
GREY = "#8a8f98"
COLOURS = {"baseline": GREY, "meow2x": "#3b7dd8", "trne": "#1f9d6b"}

# A phone shows about so many letters of a title, of a note and along an axis of 300 px.
_TITLE_WIDTH, _NOTE_WIDTH, _AXIS_WIDTH = 37, 52, 34
BASE: dict[str, Any] = {"template": "plotly_white", "font": {"family": "system-ui, sans-serif", "size": 13},
                        "margin": {"l": 70, "r": 20, "t": 50, "b": 50},
                        "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)"}
LEGEND_BELOW = {"orientation": "h", "x": 0, "xanchor": "left", "y": 0, "yref": "container", "yanchor": "bottom"}


def to_html(figure: go.Figure) -> str:
    """Return a figure as a part of a page that has Plotly's script."""
    html: str = figure.to_html(full_html=False, include_plotlyjs=False,
                               config={"responsive": True, "displaylogo": False, "displayModeBar": False})
    return html


def score_title(score: str) -> str:
    """What figures call a score; its name if it has no title."""
    return SCORES[score].title if score in SCORES else score


def score_axis(score: str) -> str:
    """Title of an axis of a layer's score, with its unit, in lines that fit a small figure."""
    unit = SCORE_UNITS.get(score)
    return lines(score_title(score) + (f" ({unit})" if unit else ""), _AXIS_WIDTH)


def lay_out(figure: go.Figure, title: str, note: str = "", *, height: int, **layout: Any) -> go.Figure:
    """Give a figure its looks; title and note are broken into lines that fit a phone, with room above the plot.

    Args:
        figure: changed in place, and returned.
        title: plain text.
        note: plain text in small type under the title.
        height: of the figure in pixels, title not counted.
        layout: anything else for the layout.
    """
    heading, small = lines(title, _TITLE_WIDTH), lines(note, _NOTE_WIDTH) if note else ""
    top = 28 + 22 * (heading.count("<br>") + 1) + (17 * (small.count("<br>") + 1) if small else 0)
    # Plotly anchors a title by its first line's middle if it has more than one, by its top if not.
    pad = 22 if small or "<br>" in heading else 12
    text = heading + (f'<br><span style="font-size:12px">{small}</span>' if small else "")
    figure.update_layout(**{
        **BASE, "margin": {"l": 70, "r": 20, "t": top, "b": 50}, "height": height + top,
        "title": {"text": text, "x": 0, "xref": "container", "y": 1, "yref": "container", "yanchor": "top",
                  "pad": {"t": pad, "l": 12}, "font": {"size": 16}}, **layout,
    })
    figure.update_xaxes(title_font_size=13)
    return figure.update_yaxes(title_font_size=13)


def lines(text: str, width: int) -> str:
    """Plain text as Plotly's HTML, in lines of at most `width` letters; names are broken only if too long for one."""
    too_long = any(len(word) > width for word in text.split())
    return "<br>".join(html.escape(line, quote=False)
                       for line in textwrap.wrap(text, width, break_on_hyphens=too_long))


def wrapped(label: str) -> str:
    """Break a label at its first space or hyphen, so that it stays level on a narrow screen."""
    return re.sub(r"([ -])", r"\1<br>", label, count=1)


def colour_bar(title: str, **settings: Any) -> dict[str, Any]:
    """Return a colour bar under the plot, where it takes no width from narrow columns."""
    # The title goes below: above a horizontal bar, Plotly lets them overlap.
    return {"orientation": "h", "thickness": 10, "y": 0, "yref": "container", "yanchor": "bottom",
            "exponentformat": "power", "title": {"text": title, "side": "bottom", "font": {"size": 13}}, **settings}


def layer_axis(n_layers: int) -> dict[str, Any]:
    """Settings of an axis of layers: every layer has its tick, if there are few."""
    return {"title": {"text": "layer"}, "dtick": 1 if n_layers <= 16 else None, "zeroline": False}


def band(x: np.ndarray, low: Float64[np.ndarray, " n"], high: Float64[np.ndarray, " n"], colour: str,
         opacity: float = 0.2, **trace: Any) -> go.Scatter:
    """Return the area between two curves, without hover."""
    red, green, blue = (int(colour[i: i + 2], 16) for i in (1, 3, 5))
    return go.Scatter(x=np.r_[x, x[::-1]], y=np.r_[high, low[::-1]], fill="toself", mode="lines", line={"width": 0},
                      fillcolor=f"rgba({red},{green},{blue},{opacity})", hoverinfo="skip", **trace)


def interval(low: float, high: float, form: str = ".3g") -> str:
    """Return an interval as text."""
    return f"95% interval [{low:{form}}, {high:{form}}]"
