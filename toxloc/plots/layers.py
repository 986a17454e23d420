"""Scores of layers over depth, of one model and of several."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Int64

from ..errors import ToxlocError
from .protocols import Localization, Uncertainty
from .style import (
    ALPHA,
    BLUE,
    DIVERGING,
    GREY,
    LEGEND_BELOW,
    OKABE_ITO,
    band,
    capital,
    colour_bar,
    interval,
    lay_out,
    layer_axis,
    lines,
    of_part,
    with_unit,
)

BANDS_UP_TO = 3  # models; the intervals of more models cover each other
LABELS_UP_TO = 40  # layers
DASHES = ("solid", "dash", "dot", "dashdot")


def toxicity_by_depth(loc: Localization, score: str = "attribution", part: str | None = None) -> go.Figure:
    """Draw one score over layers, with its 95% interval and its null (mean ± 2 sd under shuffled labels) if known.

    A marker is filled if the p-value of the layer, adjusted for testing every layer, is below 0.05, and open
    otherwise.

    Args:
        loc: the localization.
        score: name of a computed score.
        part: "mlp" or "attention"; None for the first part of the localization.

    Raises:
        ToxlocError: the score was not computed, or the localization lacks the part.

    Example:
        >>> toxicity_by_depth(loc, "attribution")     # doctest: +SKIP
    """
    part = loc.parts[0] if part is None else part
    values, known, label = loc.layer_scores(score, part), loc.part_uncertainty(score, part), loc.score_label(score)
    layers = _layers(loc, part)
    figure = go.Figure()
    if known is not None:
        figure.add_trace(
            band(
                layers,
                known.null_mean - 2 * known.null_sd,
                known.null_mean + 2 * known.null_sd,
                GREY,
                0.3,
                name="shuffled labels, mean ± 2 sd",
            )
        )
        figure.add_trace(band(layers, known.low, known.high, BLUE, 0.25, name="95% interval"))
        note = f"Filled markers: p < {ALPHA:g}, adjusted for looking at every layer."
        if ((values < known.low) | (values > known.high)).any():
            note += " The interval takes off the bias that the score has on few texts, so markers can lie outside."
    else:
        note = "This score has no interval."
    figure.add_scatter(
        x=layers,
        y=values,
        name=label.title,
        mode="lines+markers",
        line={"color": BLUE},
        marker={
            "size": 10,
            "symbol": ["circle" if sure else "circle-open" for sure in _sure(known, len(values))],
            "line": {"width": 2, "color": BLUE},
        },
        text=[_hover(value, known, i) for i, value in enumerate(values)],
        hovertemplate="layer %{x}<br>%{text}<extra></extra>",
    )
    return lay_out(
        figure,
        of_part(part, f"{label.title} by depth in {loc.about['model']}"),
        note,
        height=400,
        xaxis=layer_axis(len(layers)),
        yaxis={"title": {"text": with_unit(label.title, label.unit)}, "zerolinecolor": GREY, "exponentformat": "power"},
        legend=LEGEND_BELOW,
        showlegend=known is not None,
    )


def layer_heatmap(loc: Localization, part: str | None = None) -> go.Figure:
    """Draw all scores over depth: one row per layer, one column per score.

    Scores have different units, so the colour is the share of the largest absolute value in the column; the numbers
    shown are the scores themselves. If a score carries no information at another value than 0 (AUROC at 0.5, the
    calibrated gradient norm at 1), the colour is the share of the largest distance from that value.

    Args:
        loc: the localization.
        part: "mlp" or "attention"; None for the first part of the localization.

    Raises:
        ToxlocError: the localization lacks the part.
    """
    part = loc.parts[0] if part is None else part
    columns = {name: loc.layer_scores(name, part) for name in loc.scores}
    labels = {name: loc.score_label(name) for name in columns}
    layers = _layers(loc, part)
    text = [[f"{values[i]:.3g}" for values in columns.values()] for i in range(len(layers))]
    shares = {name: _share(values - labels[name].centre) for name, values in columns.items()}
    known = {name: loc.part_uncertainty(name, part) for name in columns}
    hover = [
        [
            f"layer {layer}, {labels[name].title}<br>{_hover(values[i], known[name], i)}"
            f"<br>{shares[name][i]:.0%} of the largest{_distance(labels[name].centre)}"
            for name, values in columns.items()
        ]
        for i, layer in enumerate(layers)
    ]
    figure = go.Figure(
        go.Heatmap(
            z=np.stack(list(shares.values()), axis=1),
            x=[lines(label.title, 12) for label in labels.values()],
            y=[f"layer {layer}" for layer in layers],
            text=text,
            hovertext=hover,
            texttemplate="%{text}" if len(layers) <= LABELS_UP_TO else None,
            zmin=-1,
            zmax=1,
            colorscale=DIVERGING,
            colorbar=colour_bar("share of the score's largest", tickformat=".0%"),
            hovertemplate="%{hovertext}<extra></extra>",
        )
    )
    return lay_out(
        figure,
        of_part(part, f"toxicity by depth in {loc.about['model']}"),
        height=160 + 24 * max(8, len(layers)),
        yaxis={"autorange": "reversed"},
        xaxis={"autotickangles": [0, -90], "tickfont": {"size": 11}},
    )


def relative_depth(locs: Sequence[Localization] | Mapping[str, Localization], score: str = "attribution") -> go.Figure:
    """Draw one score of several models over relative depth, each divided by its largest absolute value.

    The first part of each localization is drawn, which is the MLPs unless only attention was localized.

    Args:
        locs: localizations; the keys of a mapping are the names of the lines, otherwise the names of the models.
        score: name of a score that every localization has.

    Raises:
        ToxlocError: no localization was given, or one lacks the score.

    Example:
        >>> relative_depth({"small": loc_a, "large": loc_b})     # doctest: +SKIP
    """
    if not locs:
        raise ToxlocError("relative_depth needs at least one localization.")
    named = list(locs.items()) if isinstance(locs, Mapping) else [(loc.about["model"], loc) for loc in locs]
    figure, bands = go.Figure(), False
    for i, (name, loc) in enumerate(named):
        part = loc.parts[0]
        values, known, layers = loc.layer_scores(score, part), loc.part_uncertainty(score, part), _layers(loc, part)
        colour, largest = OKABE_ITO[i % len(OKABE_ITO)], np.abs(values).max() or 1.0
        depth = layers / max(layers[-1], 1)
        if known is not None and len(named) <= BANDS_UP_TO:
            bands = True
            figure.add_trace(
                band(
                    depth, known.low / largest, known.high / largest, colour, 0.15, legendgroup=str(i), showlegend=False
                )
            )
        figure.add_scatter(
            x=depth,
            y=values / largest,
            name=name,
            legendgroup=str(i),
            mode="lines+markers",
            line={"color": colour, "dash": DASHES[i // len(OKABE_ITO) % len(DASHES)]},
            marker={"size": 6},
            text=[
                f"layer {layer} of 0 to {layers[-1]}<br>{_hover(value, known, place)}"
                for place, (layer, value) in enumerate(zip(layers, values, strict=True))
            ],
            hovertemplate="%{fullData.name}, %{text}<br>%{y:.0%} of its largest<extra></extra>",
        )
    for third, label in enumerate(("early", "middle", "late")):
        figure.add_annotation(x=(third + 0.5) / 3, y=1, yref="paper", yanchor="bottom", text=label, showarrow=False)
        if third:
            figure.add_vline(third / 3, line={"color": GREY, "width": 1, "dash": "dot"})
    title = named[0][1].score_label(score).title
    figure = lay_out(
        figure,
        f"{capital(title)} over relative depth",
        "Each model's score is divided by its largest absolute value." + (" Bands: 95% intervals." if bands else ""),
        height=430,
        xaxis={
            "title": {"text": "relative depth (0: first layer, 1: last)"},
            "range": [-0.03, 1.03],
            "zeroline": False,
        },
        yaxis={"title": {"text": "share of the model's largest"}, "tickformat": ".0%", "zerolinecolor": GREY},
        legend=LEGEND_BELOW,
        showlegend=True,
    )
    return figure.update_layout(margin_t=figure.layout.margin.t + 18)


def _layers(loc: Localization, part: str) -> Int64[np.ndarray, " n_sites"]:
    return np.array([site.layer for site in loc.sites(part)], dtype=np.int64)


def _sure(known: Uncertainty | None, n_sites: int) -> list[bool]:
    return [True] * n_sites if known is None else [bool(p < ALPHA) for p in known.p_adjusted]


def _hover(value: float, known: Uncertainty | None, i: int) -> str:
    if known is None:
        return f"score {value:.3g}"
    return (
        f"score {value:.3g}<br>{interval(known.low[i], known.high[i])}<br>"
        f"z {known.z[i]:.1f}, adjusted p {known.p_adjusted[i]:.2g}"
    )


def _distance(centre: float) -> str:
    return f" distance from {centre:g}" if centre else ""


def _share(values: np.ndarray) -> np.ndarray:
    share: np.ndarray = values / (np.abs(values).max() or 1.0)
    return share
