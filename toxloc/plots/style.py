"""Style of all figures: colours, line breaks, and a layout that is readable on a phone and in dark mode."""

import html
import re
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float64

from ..support.control_characters import visible

DIVERGING, SEQUENTIAL = "RdBu_r", "Cividis"
# Okabe and Ito's palette, which colour-blind readers can distinguish. Yellow is left out because it is invisible on a
# light page, and black because it is invisible on a dark page.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BLUE, VERMILLION, *_ = OKABE_ITO
GREY = "#8a8f98"
DASHES = ("solid", "dash", "dot", "dashdot")

# Characters per line that fit on a phone: of a title, of a note, and along an axis of 300 px.
_TITLE_WIDTH, _NOTE_WIDTH, _AXIS_WIDTH = 37, 48, 34
BASE: dict[str, Any] = {
    "template": "plotly_white",
    "font": {"family": "system-ui, sans-serif", "size": 13},
    "margin": {"l": 70, "r": 20, "t": 50, "b": 50},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
}
LEGEND_BELOW = {"orientation": "h", "x": 0, "xanchor": "left", "y": 0, "yref": "container", "yanchor": "bottom"}


def to_html(figure: go.Figure) -> str:
    """Return a figure as HTML for a page that already contains the Plotly script."""
    html: str = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        config={"responsive": True, "displaylogo": False, "displayModeBar": False},
    )
    return html


def with_unit(title: str, unit: str) -> str:
    """Return the title of an axis with its unit in parentheses, broken into lines that fit a small figure."""
    return lines(title + (f" ({unit})" if unit else ""), _AXIS_WIDTH)


def capital(title: str) -> str:
    """Return a title with a capital first letter; the other letters are unchanged."""
    return title[:1].upper() + title[1:]


def part_title(part: str) -> str:
    """Return the name of a part in figures.

    Example:
        >>> part_title("mlp"), part_title("shared_expert")
        ('MLP', 'shared expert')
    """
    return "MLP" if part == "mlp" else part.replace("_", " ")


def asked(question: str, note: str = "") -> str:
    """Return the note of a figure, which begins with the question that the figure answers.

    Example:
        >>> asked("does it detect toxic text?", "No p-values.")
        'Question: does it detect toxic text? No p-values.'
    """
    return f"{f'Question: {question}' if question else ''} {note}".strip()


def of_part(part: str, title: str) -> str:
    """Return the title of a figure, with the name of the drawn part in front unless the part is the MLP.

    Example:
        >>> of_part("attention", "toxicity by depth")
        'Attention: toxicity by depth'
    """
    return capital(title) if part == "mlp" else f"{capital(part.replace('_', ' '))}: {title}"


def lay_out(figure: go.Figure, title: str, note: str = "", *, height: int, **layout: Any) -> go.Figure:
    """Apply the common layout, with the title and the note broken into lines that fit on a phone.

    Args:
        figure: the figure; it is changed in place and returned.
        title: plain text.
        note: plain text, shown in small type under the title.
        height: height in pixels, without the title and the note.
        layout: further settings of the Plotly layout.
    """
    heading, small = lines(title, _TITLE_WIDTH), lines(note, _NOTE_WIDTH) if note else ""
    top = 28 + 22 * (heading.count("<br>") + 1) + (17 * (small.count("<br>") + 1) if small else 0)
    # Plotly anchors a title of several lines at the middle of the first line, and a title of one line at its top.
    pad = 22 if small or "<br>" in heading else 12
    text = heading + (f'<br><span style="font-size:12px">{small}</span>' if small else "")
    figure.update_layout(
        **{
            **BASE,
            "margin": {"l": 70, "r": 20, "t": top, "b": 50},
            "height": height + top,
            "title": {
                "text": text,
                "x": 0,
                "xref": "container",
                "y": 1,
                "yref": "container",
                "yanchor": "top",
                "pad": {"t": pad, "l": 12},
                "font": {"size": 16},
            },
            **layout,
        }
    )
    figure.update_xaxes(title_font_size=13)
    return figure.update_yaxes(title_font_size=13)


def below_titles(figure: go.Figure) -> go.Figure:
    """Move the panels of a figure down by the height of their titles; the figure is changed in place and returned."""
    return figure.update_layout(margin_t=figure.layout.margin.t + 24, height=figure.layout.height + 24)


def plain(text: str) -> str:
    """Return a name as HTML for Plotly, which reads links and other tags in all texts of a figure.

    Control characters are shown as escapes.

    Example:
        >>> plain("<b>gpt2</b>")
        '&lt;b&gt;gpt2&lt;/b&gt;'
    """
    return html.escape(visible(text), quote=False)


def lines(text: str, width: int, break_words: bool = True) -> str:
    """Return plain text as HTML for Plotly, in lines of at most `width` characters.

    Longer words are broken, or are put on separate lines if `break_words` is off.
    """
    too_long = break_words and any(len(word) > width for word in text.split())
    wrapped_lines = textwrap.wrap(text, width, break_on_hyphens=too_long, break_long_words=break_words)
    return "<br>".join(map(plain, wrapped_lines))


def wrapped(label: str) -> str:
    """Return a name as HTML for Plotly, broken at its first space or hyphen, to stay horizontal on a narrow screen."""
    return re.sub(r"([ -])", r"\1<br>", plain(label), count=1)


def colour_bar(title: str, **settings: Any) -> dict[str, Any]:
    """Return the settings of a colour bar below the plot, so that the plot keeps its full width."""
    # The title goes below the bar: Plotly lets a title above a horizontal bar overlap it.
    return {
        "orientation": "h",
        "thickness": 10,
        "y": 0,
        "yref": "container",
        "yanchor": "bottom",
        "exponentformat": "power",
        "title": {"text": title, "side": "bottom", "font": {"size": 13}},
        **settings,
    }


def layer_axis(n_layers: int) -> dict[str, Any]:
    """Return the settings of an axis of layers."""
    return {"title": {"text": "layer"}, "zeroline": False, **layer_ticks(n_layers)}


def layer_ticks(n_layers: int) -> dict[str, Any]:
    """Return the ticks of an axis of layers: at every layer if there are at most 16 layers."""
    return {"dtick": 1 if n_layers <= 16 else None}


LEVEL_UP_TO = 8  # tokens; the labels of more tokens do not fit horizontally


def token_axis(tokens: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the labels of the tokens of a text, and the settings of an axis of its positions.

    The axis is categorical, because Plotly leaves out labels of a numeric axis. The categories are positions as text,
    because a token can occur more than once.
    """
    labels = [plain(token.replace("\n", "⏎").strip() or "␣") for token in tokens]
    return labels, {
        "type": "category",
        "labelalias": {str(position): label for position, label in enumerate(labels)},
        "tickangle": 0 if len(labels) <= LEVEL_UP_TO else -90,
        "tickfont": {"size": 11},
    }


def colour_scale(centre: float, values: np.ndarray) -> dict[str, Any]:
    """Return a diverging scale around the centre; a sequential scale from 0 if centre is 0 and no value is negative."""
    if centre == 0 and np.nanmin(values) >= 0:
        return {"colorscale": SEQUENTIAL, "zmin": 0.0, "zmax": float(np.nanquantile(values, 0.995)) or 1.0}
    limit = float(np.nanquantile(np.abs(values - centre), 0.995)) or 1.0
    return {"colorscale": DIVERGING, "zmin": centre - limit, "zmax": centre + limit}


def line_of(i: int) -> dict[str, str]:
    """Return the colour and the dashes of the line of the i-th model."""
    return {"color": OKABE_ITO[i % len(OKABE_ITO)], "dash": DASHES[i // len(OKABE_ITO) % len(DASHES)]}


def relative_depth_axis(first: str, last: str) -> dict[str, Any]:
    """Return the settings of an axis of relative depth.

    Args:
        first: what lies at 0.
        last: what lies at 1.
    """
    return {"title": {"text": f"relative depth (0: {first}, 1: {last})"}, "range": [-0.03, 1.03], "zeroline": False}


def mark_thirds(figure: go.Figure) -> go.Figure:
    """Mark the thirds of an axis of relative depth above the plot; call it after `lay_out`."""
    for third, label in enumerate(("early", "middle", "late")):
        figure.add_annotation(x=(third + 0.5) / 3, y=1, yref="paper", yanchor="bottom", text=label, showarrow=False)
        if third:
            figure.add_vline(third / 3, line={"color": GREY, "width": 1, "dash": "dot"})
    return figure.update_layout(margin_t=figure.layout.margin.t + 18)


def band(
    x: np.ndarray,
    low: Float64[np.ndarray, " n"],
    high: Float64[np.ndarray, " n"],
    colour: str,
    opacity: float = 0.2,
    **trace: Any,
) -> go.Scatter:
    """Return the filled area between two curves, without hover text."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return go.Scatter(
        x=np.r_[x, x[::-1]],
        y=np.r_[high, low[::-1]],
        fill="toself",
        mode="lines",
        line={"width": 0},
        fillcolor=f"rgba({red},{green},{blue},{opacity})",
        hoverinfo="skip",
        **trace,
    )


def interval(low: float, high: float, form: str = ".3g") -> str:
    """Return an interval as text."""
    return f"95% interval [{low:{form}}, {high:{form}}]"
