"""Figure of the distribution of a score over the neurons or heads of each layer."""

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float64

from .protocols import Localization
from .style import asked, colour_bar, colour_scale, lay_out, of_part, with_unit

UNITS = {"attention": "head", "mixer": "channel"}  # units of all other parts are neurons
TALLEST = 128  # rows, of the height at which their names can be read; more rows share this height


def neuron_map(loc: Localization, score: str = "attribution", bins: int = 256, part: str | None = None) -> go.Figure:
    """Draw the neurons of each layer sorted by score: each row is the distribution of the score in a layer.

    If a layer has more than `bins` neurons, a cell shows the mean of neighbours in this order, except that the first
    and the last cell show the single neurons with the highest and the lowest score. The hover text of a cell names its
    neuron, or says how many neurons it averages.

    Args:
        loc: the localization.
        score: name of a computed score.
        bins: maximum number of cells per row.
        part: "mlp", or "attention" for its heads; None for the first part of the localization.

    Raises:
        ToxlocError: the score was not computed, or the localization lacks the part.

    Example:
        >>> neuron_map(loc, "attribution")     # doctest: +SKIP
    """
    part = loc.parts[0] if part is None else part
    scores, label, unit = loc.neuron_scores(score, part), loc.score_label(score), UNITS.get(part, "neuron")
    title = label.neuron_title or label.title
    order = np.argsort(-scores, axis=1, kind="stable")  # NaN, where a site has fewer units than others, comes last
    values = np.take_along_axis(scores, order, axis=1)
    cuts = np.array_split(np.arange(values.shape[1]), min(bins, values.shape[1]))
    shown = _binned(values, cuts)
    figure = go.Figure(
        go.Heatmap(
            z=shown,
            y=[site.title for site in loc.sites(part)],
            x=np.linspace(0, 100, shown.shape[1]),
            text=[_hover_texts(row, cuts, unit) for row in order],
            **colour_scale(label.centre, shown),
            colorbar=colour_bar(with_unit(title, label.unit)),
            hovertemplate="%{y}, %{text}<br>score %{z:.3g}<extra></extra>",
        )
    )
    return lay_out(
        figure,
        of_part(part, f"{unit}s by {title} in {loc.about['model']}"),
        asked(f"is the score of a layer that of a few {unit}s or of many?"),
        height=140 + 22 * min(max(8, len(values)), TALLEST),
        yaxis={"autorange": "reversed"},
        xaxis={"title": {"text": f"{unit}s, highest score first (%)"}},
    )


def _binned(
    rows: Float64[np.ndarray, "n_sites n_units"], cuts: list[np.ndarray]
) -> Float64[np.ndarray, "n_sites bins"]:
    binned = np.stack([rows[:, cut].mean(1) for cut in cuts], axis=1)
    binned[:, 0], binned[:, -1] = rows[:, 0], rows[:, -1]
    return binned


def _hover_texts(order: np.ndarray, cuts: list[np.ndarray], unit: str) -> list[str]:
    """Return the hover text of every cell of a row."""

    def single(rank: int) -> str:
        return f"{unit} {order[rank]}<br>rank {rank + 1} of {len(order)}"

    texts = [
        single(int(cut[0]))
        if len(cut) == 1
        else f"mean of {len(cut)} {unit}s<br>ranks {cut[0] + 1} to {cut[-1] + 1} of {len(order)}"
        for cut in cuts
    ]
    texts[0], texts[-1] = single(0), single(len(order) - 1)
    return texts
