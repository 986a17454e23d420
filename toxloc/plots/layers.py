"""Where in depth toxicity is: scores of layers, of one model and of several."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from ..errors import ToxlocError
from ..localization.result import Localization
from ..localization.uncertainty import Uncertainty
from .style import (
    ALPHA,
    BLUE,
    DIVERGING,
    GREY,
    LEGEND_BELOW,
    OKABE_ITO,
    SCORE_CENTRES,
    band,
    colour_bar,
    interval,
    lay_out,
    layer_axis,
    lines,
    score_axis,
    score_title,
)

BANDS_UP_TO = 3  # models; the intervals of more cover each other
LABELS_UP_TO = 40  # layers
DASHES = ("solid", "dash", "dot", "dashdot")


def toxicity_by_depth(loc: Localization, score: str = "attribution") -> go.Figure:
    """One score against layer, with its 95% interval and what shuffled labels give (mean ± 2 sd), where known.

    Markers are filled where the p that is adjusted for looking at every layer is below .05, and open elsewhere.

    Raises:
        ToxlocError: the score was not computed.

    Example:
        >>> toxicity_by_depth(loc, "attribution")     # doctest: +SKIP
    """
    values, known = loc.layer_scores(score), loc.uncertainty.get(score)
    layers = np.arange(len(values))
    figure = go.Figure()
    if known is not None:
        figure.add_trace(band(layers, known.null_mean - 2 * known.null_sd, known.null_mean + 2 * known.null_sd, GREY,
                              0.3, name="shuffled labels, mean ± 2 sd"))
        figure.add_trace(band(layers, known.low, known.high, BLUE, 0.25, name="95% interval"))
        note = f"Filled markers: p < {ALPHA:g}, adjusted for looking at every layer."
        if ((values < known.low) | (values > known.high)).any():
            note += " The interval takes off the bias that the score has on few texts, so markers can lie outside."
    else:
        note = "This score has no interval."
    figure.add_scatter(
        x=layers, y=values, name=score_title(score), mode="lines+markers", line={"color": BLUE},
        marker={"size": 10, "symbol": ["circle" if sure else "circle-open" for sure in _sure(known, len(values))],
                "line": {"width": 2, "color": BLUE}},
        text=[_hover(value, known, layer) for layer, value in enumerate(values)],
        hovertemplate="layer %{x}<br>%{text}<extra></extra>",
    )
    return lay_out(figure, f"{_capital(score_title(score))} by depth in {loc.about['model']}", note, height=400,
                   xaxis=layer_axis(len(values)),
                   yaxis={"title": {"text": score_axis(score)}, "zerolinecolor": GREY, "exponentformat": "power"},
                   legend=LEGEND_BELOW, showlegend=known is not None)


def layer_heatmap(loc: Localization) -> go.Figure:
    """Toxicity by depth: one row a layer, one column a score, coloured by the share of the score's largest value.

    Scores have different units, so each column is divided by its own largest absolute value; the numbers shown are
    the scores themselves. A score that says nothing at another value than 0 (AUROC at .5, the calibrated gradient
    norm at 1) is coloured by its distance from there.
    """
    columns = {name: loc.layer_scores(name) for name in loc.scores}
    n_layers = len(next(iter(columns.values())))
    text = [[f"{values[layer]:.3g}" for values in columns.values()] for layer in range(n_layers)]
    shares = {name: _share(values - SCORE_CENTRES.get(name, 0.0)) for name, values in columns.items()}
    hover = [[f"layer {layer}, {score_title(name)}<br>" + _hover(values[layer], loc.uncertainty.get(name), layer)
              + f"<br>{shares[name][layer]:.0%} of the largest{_distance(name)}"
              for name, values in columns.items()] for layer in range(n_layers)]
    figure = go.Figure(go.Heatmap(
        z=np.stack(list(shares.values()), axis=1),
        x=[lines(score_title(name), 12) for name in columns],
        y=[f"layer {layer}" for layer in range(n_layers)], text=text, hovertext=hover,
        texttemplate="%{text}" if n_layers <= LABELS_UP_TO else None, zmin=-1, zmax=1, colorscale=DIVERGING,
        colorbar=colour_bar("share of the score's largest", tickformat=".0%"),
        hovertemplate="%{hovertext}<extra></extra>",
    ))
    return lay_out(figure, f"Toxicity by depth in {loc.about['model']}", height=160 + 24 * max(8, n_layers),
                   yaxis={"autorange": "reversed"}, xaxis={"autotickangles": [0, -90], "tickfont": {"size": 11}})


def relative_depth(locs: Sequence[Localization] | dict[str, Localization], score: str = "attribution") -> go.Figure:
    """Early, middle or late? One score of several models over relative depth, each divided by its largest value.

    Args:
        locs: localizations; those of a dict are called by its keys, others by their model.
        score: one that all of them have.

    Raises:
        ToxlocError: none given, or one without the score.

    Example:
        >>> relative_depth({"small": loc_a, "large": loc_b})     # doctest: +SKIP
    """
    if not locs:
        raise ToxlocError("relative_depth needs at least one localization.")
    named = list(locs.items()) if isinstance(locs, dict) else [(loc.about["model"], loc) for loc in locs]
    figure = go.Figure()
    for i, (name, loc) in enumerate(named):
        values, known = loc.layer_scores(score), loc.uncertainty.get(score)
        colour, largest = OKABE_ITO[i % len(OKABE_ITO)], np.abs(values).max() or 1.0
        depth = np.arange(len(values)) / max(len(values) - 1, 1)
        if known is not None and len(named) <= BANDS_UP_TO:
            figure.add_trace(band(depth, known.low / largest, known.high / largest, colour, 0.15,
                                  legendgroup=str(i), showlegend=False))
        figure.add_scatter(
            x=depth, y=values / largest, name=name, legendgroup=str(i), mode="lines+markers",
            line={"color": colour, "dash": DASHES[i // len(OKABE_ITO) % len(DASHES)]}, marker={"size": 6},
            text=[f"layer {layer} of 0 to {len(values) - 1}<br>{_hover(value, known, layer)}"
                  for layer, value in enumerate(values)],
            hovertemplate="%{fullData.name}, %{text}<br>%{y:.0%} of its largest<extra></extra>",
        )
    for third, label in enumerate(("early", "middle", "late")):
        figure.add_annotation(x=(third + 0.5) / 3, y=1, yref="paper", yanchor="bottom", text=label, showarrow=False)
        if third:
            figure.add_vline(third / 3, line={"color": GREY, "width": 1, "dash": "dot"})
    bands = any(score in loc.uncertainty for _, loc in named) and len(named) <= BANDS_UP_TO
    figure = lay_out(figure, f"{_capital(score_title(score))} over relative depth",
                     "Each model's score is divided by its largest absolute value."
                     + (" Bands: 95% intervals." if bands else ""), height=430,
                     xaxis={"title": {"text": "relative depth (0: first layer, 1: last)"}, "range": [-0.03, 1.03],
                            "zeroline": False},
                     yaxis={"title": {"text": "share of the model's largest"}, "tickformat": ".0%",
                            "zerolinecolor": GREY}, legend=LEGEND_BELOW, showlegend=True)
    return figure.update_layout(margin_t=figure.layout.margin.t + 18)


def _sure(known: Uncertainty | None, n_layers: int) -> list[bool]:
    return [True] * n_layers if known is None else [bool(p < ALPHA) for p in known.p_adjusted]


def _hover(value: float, known: Uncertainty | None, layer: int) -> str:
    if known is None:
        return f"score {value:.3g}"
    return (f"score {value:.3g}<br>{interval(known.low[layer], known.high[layer])}<br>"
            f"z {known.z[layer]:.1f}, adjusted p {known.p_adjusted[layer]:.2g}")


def _distance(score: str) -> str:
    centre = SCORE_CENTRES.get(score)
    return "" if centre is None else f" distance from {centre:g}"


def _share(values: np.ndarray) -> np.ndarray:
    share: np.ndarray = values / (np.abs(values).max() or 1.0)
    return share


def _capital(title: str) -> str:
    return title[:1].upper() + title[1:]
