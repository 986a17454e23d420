"""Figures of layer scores over depth, for one or several models."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float64

from ..errors import ToxlocError
from .protocols import Localization, Uncertainty
from .style import (
    ALPHA,
    BLUE,
    DIVERGING,
    GREY,
    LEGEND_BELOW,
    band,
    capital,
    colour_bar,
    interval,
    lay_out,
    layer_axis,
    line_of,
    lines,
    mark_thirds,
    of_part,
    plain,
    relative_depth_axis,
    with_unit,
)

BANDS_UP_TO = 3  # models; the bands of more models would cover each other
LABELS_UP_TO = 40  # layers
TALLEST = 128  # rows, of the height at which their names can be read; more rows share this height


def toxicity_by_depth(loc: Localization, score: str = "attribution", part: str | None = None) -> go.Figure:
    """Draw one score per layer, with its 95% interval and its null distribution (mean ± 2 sd) if they are known.

    The null distribution is that of the score under shuffled labels. A marker is filled if the p-value of the layer,
    adjusted for testing every layer, is below 0.05, and open otherwise. Without p-values all markers are filled.

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
    values, label = loc.layer_scores(score, part), loc.score_label(score)
    uncertainty = loc.part_uncertainty(score, part)
    layers, sites = _layers(loc, part), loc.sites(part)
    figure = go.Figure()
    if uncertainty is not None:
        figure.add_trace(
            band(
                layers,
                uncertainty.null_mean - 2 * uncertainty.null_sd,
                uncertainty.null_mean + 2 * uncertainty.null_sd,
                GREY,
                0.3,
                name="shuffled labels, mean ± 2 sd",
            )
        )
        figure.add_trace(band(layers, uncertainty.low, uncertainty.high, BLUE, 0.25, name="95% interval"))
        note = f"Filled markers: p < {ALPHA:g}, adjusted for testing every layer."
        if ((values < uncertainty.low) | (values > uncertainty.high)).any():
            note += " The interval corrects the bias that the score has on few texts, so markers can lie outside it."
    else:
        note = "This score has no interval."
    figure.add_scatter(
        x=layers,
        y=values,
        name=plain(label.title),
        mode="lines+markers",
        line={"color": BLUE},
        marker={
            "size": 10,
            "symbol": ["circle" if filled else "circle-open" for filled in _significant(uncertainty, len(values))],
            "line": {"width": 2, "color": BLUE},
        },
        text=[f"{sites[i].title}<br>{_hover(value, uncertainty, i)}" for i, value in enumerate(values)],
        hovertemplate="%{text}<extra></extra>",
    )
    return lay_out(
        figure,
        of_part(part, f"{label.title} by depth in {loc.about['model']}"),
        note,
        height=400,
        xaxis=layer_axis(len(set(layers.astype(int)))),
        yaxis={"title": {"text": with_unit(label.title, label.unit)}, "zerolinecolor": GREY, "exponentformat": "power"},
        legend=LEGEND_BELOW,
        showlegend=uncertainty is not None,
    )


def layer_heatmap(loc: Localization, part: str | None = None) -> go.Figure:
    """Draw all scores as a heatmap with one row per layer and one column per score.

    Scores have different units, so the colour is the score divided by the largest absolute value in its column; the
    numbers shown are the scores. If the value that carries no information is not 0 (0.5 for AUROC, 1 for the calibrated
    gradient norm), the colour is the distance from that value divided by the largest distance.

    Args:
        loc: the localization.
        part: "mlp" or "attention"; None for the first part of the localization.

    Raises:
        ToxlocError: the localization lacks the part.
    """
    part = loc.parts[0] if part is None else part
    columns = {name: loc.layer_scores(name, part) for name in loc.scores}
    labels = {name: loc.score_label(name) for name in columns}
    sites = loc.sites(part)
    text = [[f"{values[i]:.3g}" for values in columns.values()] for i in range(len(sites))]
    shares = {name: _share(values - labels[name].centre) for name, values in columns.items()}
    uncertainties = {name: loc.part_uncertainty(name, part) for name in columns}
    hover = [
        [
            f"{site.title}, {plain(labels[name].title)}<br>{_hover(values[i], uncertainties[name], i)}"
            f"<br>{shares[name][i]:.0%} of the largest {_measure(labels[name].centre)}"
            for name, values in columns.items()
        ]
        for i, site in enumerate(sites)
    ]
    figure = go.Figure(
        go.Heatmap(
            z=np.stack(list(shares.values()), axis=1),
            x=[lines(label.title, 12) for label in labels.values()],
            y=[site.title for site in sites],
            text=text,
            hovertext=hover,
            texttemplate="%{text}" if len(sites) <= LABELS_UP_TO else None,
            zmin=-1,
            zmax=1,
            colorscale=DIVERGING,
            colorbar=colour_bar("share of the column's largest value", tickformat=".0%"),
            hovertemplate="%{hovertext}<extra></extra>",
        )
    )
    return lay_out(
        figure,
        of_part(part, f"toxicity by depth in {loc.about['model']}"),
        height=160 + 24 * min(max(8, len(sites)), TALLEST),
        yaxis={"autorange": "reversed"},
        xaxis={"autotickangles": [0, -90], "tickfont": {"size": 11}},
    )


def relative_depth(locs: Sequence[Localization] | Mapping[str, Localization], score: str = "attribution") -> go.Figure:
    """Draw one score of several models over relative depth, each divided by its largest absolute value.

    The first part of each localization is drawn: the MLPs, unless only attention was localized.

    Args:
        locs: localizations. The keys of a mapping name the lines; lines of a sequence have the names of the models.
        score: name of a score that every localization has.

    Raises:
        ToxlocError: no localization was given, or a localization lacks the score.

    Example:
        >>> relative_depth({"small": loc_a, "large": loc_b})     # doctest: +SKIP
    """
    if not locs:
        raise ToxlocError("relative_depth needs at least one localization.")
    named = list(locs.items()) if isinstance(locs, Mapping) else [(loc.about["model"], loc) for loc in locs]
    figure, bands = go.Figure(), False
    for i, (name, loc) in enumerate(named):
        part = loc.parts[0]
        values, layers = loc.layer_scores(score, part), _layers(loc, part)
        uncertainty = loc.part_uncertainty(score, part)
        line, largest = line_of(i), np.abs(values).max() or 1.0
        depth = layers / max(layers[-1], 1)
        if uncertainty is not None and len(named) <= BANDS_UP_TO:
            bands = True
            figure.add_trace(
                band(
                    depth,
                    uncertainty.low / largest,
                    uncertainty.high / largest,
                    line["color"],
                    0.15,
                    legendgroup=str(i),
                    showlegend=False,
                )
            )
        figure.add_scatter(
            x=depth,
            y=values / largest,
            name=plain(name),
            legendgroup=str(i),
            mode="lines+markers",
            line=line,
            marker={"size": 6},
            text=[
                f"{site.title} of 0 to {int(layers[-1])}<br>{_hover(value, uncertainty, position)}"
                for position, (site, value) in enumerate(zip(loc.sites(part), values, strict=True))
            ],
            hovertemplate="%{fullData.name}, %{text}<br>%{y:.0%} of its largest absolute value<extra></extra>",
        )
    title = named[0][1].score_label(score).title
    figure = lay_out(
        figure,
        f"{capital(title)} over relative depth",
        "Each model's score is divided by its largest absolute value." + (" Bands: 95% intervals." if bands else ""),
        height=430,
        xaxis=relative_depth_axis("first layer", "last"),
        yaxis={"title": {"text": "share of the largest absolute value"}, "tickformat": ".0%", "zerolinecolor": GREY},
        legend=LEGEND_BELOW,
        showlegend=True,
    )
    return mark_thirds(figure)


def _layers(loc: Localization, part: str) -> Float64[np.ndarray, " n_sites"]:
    """Return the place of each site on an axis of layers; the experts of a layer are spread up to the next layer."""
    sites = loc.sites(part)
    n_experts = 1 + max(site.expert or 0 for site in sites)
    return np.array([site.layer + (site.expert or 0) / n_experts for site in sites])


def _significant(uncertainty: Uncertainty | None, n_sites: int) -> list[bool]:
    return [True] * n_sites if uncertainty is None else [bool(p < ALPHA) for p in uncertainty.p_adjusted]


def _hover(value: float, uncertainty: Uncertainty | None, i: int) -> str:
    if uncertainty is None:
        return f"score {value:.3g}"
    return (
        f"score {value:.3g}<br>{interval(uncertainty.low[i], uncertainty.high[i])}<br>"
        f"z {uncertainty.z[i]:.1f}, adjusted p {uncertainty.p_adjusted[i]:.2g}"
    )


def _measure(centre: float) -> str:
    return f"distance from {centre:g}" if centre else "absolute value"


def _share(values: np.ndarray) -> np.ndarray:
    share: np.ndarray = values / (np.abs(values).max() or 1.0)
    return share
