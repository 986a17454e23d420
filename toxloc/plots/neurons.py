"""Distribution of a score over the neurons or heads of each layer."""

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float64

from .protocols import Localization
from .style import DIVERGING, SEQUENTIAL, colour_bar, lay_out, of_part, with_unit

UNITS = {"attention": "head"}  # the units of every other part are neurons


def neuron_map(loc: Localization, score: str = "attribution", bins: int = 256, part: str | None = None) -> go.Figure:
    """Draw the neurons of each layer sorted by score, so that a row shows how the score is distributed.

    If a layer has more than `bins` neurons, a cell is the mean of neighbours in that order, except that the first
    and the last cell are the extreme neurons themselves. The hover text names the neuron of a cell, or says how many
    neurons it averages.

    Args:
        loc: the localization.
        score: name of a computed score.
        bins: largest number of cells in a row.
        part: "mlp", or "attention" for its heads; None for the first part of the localization.

    Raises:
        ToxlocError: the score was not computed, or the localization lacks the part.

    Example:
        >>> neuron_map(loc, "attribution")     # doctest: +SKIP
    """
    part = loc.parts[0] if part is None else part
    scores, label, unit = loc.neuron_scores(score, part), loc.score_label(score), UNITS.get(part, "neuron")
    title = label.neuron_title or label.title
    order = np.argsort(-scores, axis=1, kind="stable")
    values = np.take_along_axis(scores, order, axis=1)
    cuts = np.array_split(np.arange(values.shape[1]), min(bins, values.shape[1]))
    shown = _thin(values, cuts)
    figure = go.Figure(
        go.Heatmap(
            z=shown,
            y=[f"layer {site.layer}" for site in loc.sites(part)],
            x=np.linspace(0, 100, shown.shape[1]),
            text=[_names(row, cuts, unit) for row in order],
            **_scale(label.centre, shown),
            colorbar=colour_bar(with_unit(title, label.unit)),
            hovertemplate="%{y}, %{text}<br>score %{z:.3g}<extra></extra>",
        )
    )
    return lay_out(
        figure,
        of_part(part, f"{unit}s by {title} in {loc.about['model']}"),
        height=140 + 22 * max(8, len(values)),
        yaxis={"autorange": "reversed"},
        xaxis={"title": {"text": f"{unit}s, highest score first (%)"}},
    )


def _thin(rows: Float64[np.ndarray, "n_sites n_units"], cuts: list[np.ndarray]) -> Float64[np.ndarray, "n_sites bins"]:
    thin = np.stack([rows[:, cut].mean(1) for cut in cuts], axis=1)
    thin[:, 0], thin[:, -1] = rows[:, 0], rows[:, -1]
    return thin


def _names(order: np.ndarray, cuts: list[np.ndarray], unit: str) -> list[str]:
    """Return the hover text of every cell of a row."""

    def single(rank: int) -> str:
        return f"{unit} {order[rank]}<br>rank {rank + 1} of {len(order)}"

    names = [
        single(int(cut[0]))
        if len(cut) == 1
        else f"mean of {len(cut)} {unit}s<br>ranks {cut[0] + 1} to {cut[-1] + 1} of {len(order)}"
        for cut in cuts
    ]
    names[0], names[-1] = single(0), single(len(order) - 1)
    return names


def _scale(centre: float, shown: np.ndarray) -> dict[str, object]:
    """Return a scale of two colours around the centre; of one colour from 0 for scores that are never negative."""
    if centre == 0 and shown.min() >= 0:
        return {"colorscale": SEQUENTIAL, "zmin": 0.0, "zmax": float(np.quantile(shown, 0.995)) or 1.0}
    limit = float(np.quantile(np.abs(shown - centre), 0.995)) or 1.0
    return {"colorscale": DIVERGING, "zmin": centre - limit, "zmax": centre + limit}
