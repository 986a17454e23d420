"""Figures of layer scores over depth, for one or several models."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float64
from plotly.subplots import make_subplots

from ..errors import ToxlocError
from ..support.significance import ALPHA
from .protocols import Localization, Uncertainty
from .style import (
    DIVERGING,
    GREY,
    LEGEND_BELOW,
    OKABE_ITO,
    asked,
    band,
    below_titles,
    capital,
    colour_bar,
    interval,
    lay_out,
    layer_axis,
    line_of,
    lines,
    mark_thirds,
    of_part,
    part_title,
    plain,
    relative_depth_axis,
    with_unit,
)

BANDS_UP_TO = 3  # models; the bands of more models would cover each other
LABELS_UP_TO = 40  # layers
TALLEST = 128  # rows, of the height at which their names can be read; more rows share this height


def toxicity_by_depth(loc: Localization, score: str = "attribution", part: str | None = None) -> go.Figure:
    """Draw one score per layer, with its 95% interval and its null distribution (mean ± 2 sd) if they are known.

    Every part has a line. The null distribution is that of the score under shuffled labels. A marker is filled if the
    p-value of the layer, adjusted for testing every site, is below 0.05, and open otherwise. Without p-values all
    markers are filled.

    Args:
        loc: the localization.
        score: name of a computed score.
        part: the only part to draw, such as "mlp" or "attention"; None for all parts of the localization.

    Raises:
        ToxlocError: the score was not computed, or the localization lacks the part.

    Example:
        >>> toxicity_by_depth(loc, "attribution")     # doctest: +SKIP
    """
    parts, label = loc.parts if part is None else (part,), loc.score_label(score)
    colours = {drawn: OKABE_ITO[i % len(OKABE_ITO)] for i, drawn in enumerate(parts)}
    known = {drawn: loc.part_uncertainty(score, drawn) for drawn in parts}
    values = {drawn: loc.layer_scores(score, drawn) for drawn in parts}
    layers = {drawn: _layers(loc, drawn) for drawn in parts}
    figure = go.Figure()
    for drawn, uncertainty in known.items():
        if uncertainty is not None:
            low, high = uncertainty.null_mean - 2 * uncertainty.null_sd, uncertainty.null_mean + 2 * uncertainty.null_sd
            null = {"name": "shuffled labels, mean ± 2 sd", "legendgroup": "null", "showlegend": drawn == parts[0]}
            figure.add_trace(band(layers[drawn], low, high, GREY, 0.3 / len(parts), **null))
    for drawn, uncertainty in known.items():
        if uncertainty is not None:
            name = "95% interval" if len(parts) == 1 else f"{part_title(drawn)}, 95% interval"
            figure.add_trace(band(layers[drawn], uncertainty.low, uncertainty.high, colours[drawn], 0.25, name=name))
    for drawn, uncertainty in known.items():
        sites, colour = loc.sites(drawn), colours[drawn]
        figure.add_scatter(
            x=layers[drawn],
            y=values[drawn],
            name=plain(label.title) if len(parts) == 1 else part_title(drawn),
            mode="lines+markers",
            line={"color": colour},
            marker={
                "size": 10,
                "symbol": [
                    "circle" if filled else "circle-open" for filled in _significant(uncertainty, len(values[drawn]))
                ],
                "line": {"width": 2, "color": colour},
            },
            text=[f"{sites[i].title}<br>{_hover(value, uncertainty, i)}" for i, value in enumerate(values[drawn])],
            hovertemplate="%{text}<extra></extra>",
        )
    certain = all(uncertainty is not None for uncertainty in known.values())
    note = "This score has no interval."
    if certain:
        note = f"Filled markers: p < {ALPHA:g}, adjusted for testing every site."
        if any(_outside(values[drawn], uncertainty) for drawn, uncertainty in known.items()):
            note += " The interval corrects the bias that the score has on few texts, so markers can lie outside it."
    title = f"{label.title} by depth in {loc.about['model']}"
    return lay_out(
        figure,
        of_part(parts[0], title) if len(parts) == 1 else capital(title),
        asked(label.question, note),
        height=400,
        xaxis=layer_axis(len({int(layer) for drawn in parts for layer in layers[drawn]})),
        yaxis={"title": {"text": with_unit(label.title, label.unit)}, "zerolinecolor": GREY, "exponentformat": "power"},
        legend=LEGEND_BELOW,
        showlegend=certain or len(parts) > 1,
    )


def layer_heatmap(loc: Localization, part: str | None = None) -> go.Figure:
    """Draw all scores as a heatmap with one row per layer and one column per score, and a panel for every part.

    Scores have different units, so the colour is the score divided by the largest absolute value of this score in all
    panels; the numbers shown are the scores. If the value that carries no information is not 0 (0.5 for AUROC, 1 for
    the calibrated gradient norm), the colour is the distance from that value divided by the largest distance.

    A cell has its full colour, and its number is bold, if the adjusted p-value is below 0.05. Other cells are the
    paler, the larger their p-value is (`faded`). Cells of scores without p-values have their full colour.

    Args:
        loc: the localization.
        part: the only part to draw, such as "mlp" or "attention"; None for all parts side by side. Experts have a row
            per expert, so they are never beside other parts; None means the first part if it is that of the experts.

    Raises:
        ToxlocError: the localization lacks the part.
    """
    parts = _panels(loc) if part is None else (part,)
    labels = {name: loc.score_label(name) for name in loc.scores}
    sites = {drawn: loc.sites(drawn) for drawn in parts}
    values = {drawn: {name: loc.layer_scores(name, drawn) for name in labels} for drawn in parts}
    known = {drawn: {name: loc.part_uncertainty(name, drawn) for name in labels} for drawn in parts}
    largest = {
        name: max(np.abs(values[drawn][name] - label.centre).max() for drawn in parts) or 1.0
        for name, label in labels.items()
    }
    rows = sorted({(site.layer, site.expert or 0) for drawn in parts for site in sites[drawn]})
    names = [sites[parts[0]][i].title if len(parts) == 1 else f"layer {row[0]}" for i, row in enumerate(rows)]
    figure = make_subplots(
        rows=1,
        cols=len(parts),
        shared_yaxes=True,
        horizontal_spacing=0.03,
        subplot_titles=[capital(part_title(drawn)) for drawn in parts] if len(parts) > 1 else None,
    )
    for column, drawn in enumerate(parts, start=1):
        z = np.full((len(rows), len(labels)), np.nan)
        text, hover = np.full(z.shape, "", dtype=object), np.full(z.shape, "", dtype=object)
        for i, site in enumerate(sites[drawn]):
            row = rows.index((site.layer, site.expert or 0))
            for j, (name, label) in enumerate(labels.items()):
                value, uncertainty = values[drawn][name][i], known[drawn][name]
                share, p = (value - label.centre) / largest[name], 0.0
                number = f"{value:.3g}" if len(parts) == 1 else f"{value:.2g}"
                if uncertainty is not None and (p := float(uncertainty.p_adjusted[i])) < ALPHA:
                    number = f"<b>{number}</b>"
                z[row, j], text[row, j] = share * faded(p), number
                hover[row, j] = (
                    f"{site.title}, {plain(label.title)}<br>{_hover(value, uncertainty, i)}"
                    f"<br>{share:.0%} of the largest {_measure(label.centre)}"
                )
        figure.add_heatmap(
            row=1,
            col=column,
            z=z,
            x=[lines(label.title, 12, break_words=False) for label in labels.values()],
            y=names,
            text=text,
            hovertext=hover,
            texttemplate="%{text}" if len(rows) <= LABELS_UP_TO else None,
            hoverongaps=False,
            coloraxis="coloraxis",
            hovertemplate="%{hovertext}<extra></extra>",
        )
    certain = [name for name in labels if all(known[drawn][name] is not None for drawn in parts)]
    note = "No p-values were computed, so no colour fades."
    if certain:
        note = f"Bold in full colour: p < {ALPHA:g}, adjusted for testing every site. Paler: larger p."
        without = [labels[name].title for name in labels if name not in certain]
        if without:
            note += f" Without p-values, in full colour: {', '.join(without)}."
    title = f"toxicity by depth in {loc.about['model']}"
    figure = lay_out(
        figure,
        of_part(parts[0], title) if len(parts) == 1 else capital(title),
        asked("which layers does each score point to?", note),
        height=160 + 24 * min(max(8, len(rows)), TALLEST),
        coloraxis={
            "cmin": -1,
            "cmax": 1,
            "colorscale": DIVERGING,
            "colorbar": colour_bar("share of the score's largest value, faded", tickformat=".0%"),
        },
    )
    if len(parts) > 1:
        below_titles(figure)
    figure.update_yaxes(autorange="reversed")
    return figure.update_xaxes(autotickangles=[0, -90], tickfont_size=11)


def faded(p: float) -> float:
    """Return the share of its colour that a cell keeps: all for p < 0.05, else from 0.57 (p = 0.05) to 0.1 (p = 1).

    Example:
        >>> faded(0.049), faded(0.5), faded(1.0)
        (1.0, 0.35, 0.1)
    """
    return 1.0 if p < ALPHA else 0.1 + 0.5 * (1 - p)


def _panels(loc: Localization) -> Sequence[str]:
    """Return the parts that are drawn side by side: those with one site per layer, or else the first part."""
    dense = [part for part in loc.parts if all(site.expert is None for site in loc.sites(part))]
    return dense if loc.parts[0] in dense else loc.parts[:1]


def relative_depth(
    locs: Sequence[Localization] | Mapping[str, Localization], score: str = "attribution", part: str | None = None
) -> go.Figure:
    """Draw one score of several models over relative depth, each divided by its largest absolute value.

    Args:
        locs: localizations. The keys of a mapping name the lines; lines of a sequence have the names of the models.
        score: name of a score that every localization has.
        part: the part to draw, such as "mlp" or "attention"; None for the first part of each localization: the MLPs,
            unless only attention was localized.

    Raises:
        ToxlocError: no localization was given, or a localization lacks the score or the part.

    Example:
        >>> relative_depth({"small": loc_a, "large": loc_b})     # doctest: +SKIP
    """
    if not locs:
        raise ToxlocError("relative_depth needs at least one localization.")
    named = list(locs.items()) if isinstance(locs, Mapping) else [(loc.about["model"], loc) for loc in locs]
    figure, bands = go.Figure(), False
    for i, (name, loc) in enumerate(named):
        drawn = loc.parts[0] if part is None else part
        values, layers = loc.layer_scores(score, drawn), _layers(loc, drawn)
        uncertainty = loc.part_uncertainty(score, drawn)
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
                for position, (site, value) in enumerate(zip(loc.sites(drawn), values, strict=True))
            ],
            hovertemplate="%{fullData.name}, %{text}<br>%{y:.0%} of its largest absolute value<extra></extra>",
        )
    label = named[0][1].score_label(score)
    figure = lay_out(
        figure,
        f"{capital(label.title)} over relative depth",
        asked(
            "is it at the same relative depth in every model?",
            f"Each line is divided by its largest absolute value.{' Bands: 95% intervals.' if bands else ''}",
        ),
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


def _outside(values: Float64[np.ndarray, " n_sites"], uncertainty: Uncertainty | None) -> bool:
    return uncertainty is not None and bool(((values < uncertainty.low) | (values > uncertainty.high)).any())
