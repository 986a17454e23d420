"""How a score is shared out among the neurons of each layer."""

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float64

from ..localization.result import Localization
from .style import DIVERGING, SCORE_CENTRES, SEQUENTIAL, colour_bar, lay_out, score_axis, score_title


def neuron_map(loc: Localization, score: str = "attribution", bins: int = 256) -> go.Figure:
    """Layer by neuron: the neurons of each layer sorted by score, so that a row shows how the score is shared out.

    With more than `bins` neurons a cell is the mean of its neighbours in that order, except that the first and the
    last are the extreme neurons themselves. The hover names the neuron of a cell, or says how many it averages.

    Raises:
        ToxlocError: the score was not computed.
    """
    scores = loc.neuron_scores(score)
    order = np.argsort(-scores, axis=1, kind="stable")
    values = np.take_along_axis(scores, order, axis=1)
    cuts = np.array_split(np.arange(values.shape[1]), min(bins, values.shape[1]))
    shown = _thin(values, cuts)
    figure = go.Figure(go.Heatmap(
        z=shown, y=[f"layer {layer}" for layer in range(len(values))], x=np.linspace(0, 100, shown.shape[1]),
        text=[_names(row, cuts) for row in order], **_scale(score, shown),
        colorbar=colour_bar(_axis(score)),
        hovertemplate="%{y}, %{text}<br>score %{z:.3g}<extra></extra>",
    ))
    return lay_out(figure, f"Neurons by {_title(score)} in {loc.about['model']}",
                   height=140 + 22 * max(8, len(values)), yaxis={"autorange": "reversed"},
                   xaxis={"title": {"text": "neurons, highest score first (%)"}})


def _thin(rows: Float64[np.ndarray, "n_layers d_mlp"], cuts: list[np.ndarray]) -> Float64[np.ndarray, "n_layers bins"]:
    thin = np.stack([rows[:, cut].mean(1) for cut in cuts], axis=1)
    thin[:, 0], thin[:, -1] = rows[:, 0], rows[:, -1]
    return thin


def _names(order: np.ndarray, cuts: list[np.ndarray]) -> list[str]:
    """What the cells of a row stand for."""
    def one(rank: int) -> str:
        return f"neuron {order[rank]}<br>rank {rank + 1} of {len(order)}"

    names = [one(int(cut[0])) if len(cut) == 1 else
             f"mean of {len(cut)} neurons<br>ranks {cut[0] + 1} to {cut[-1] + 1} of {len(order)}" for cut in cuts]
    names[0], names[-1] = one(0), one(len(order) - 1)
    return names


def _scale(score: str, shown: np.ndarray) -> dict[str, object]:
    """Two colours around the value that says nothing; one scale from 0 for scores that are sizes."""
    centre = SCORE_CENTRES.get(score, 0.0)
    if centre == 0 and shown.min() >= 0:
        return {"colorscale": SEQUENTIAL, "zmin": 0.0, "zmax": float(np.quantile(shown, 0.995)) or 1.0}
    limit = float(np.quantile(np.abs(shown - centre), 0.995)) or 1.0
    return {"colorscale": DIVERGING, "zmin": centre - limit, "zmax": centre + limit}


def _title(score: str) -> str:
    return "AUROC" if score == "auroc" else score_title(score)  # its title speaks of a layer's best neuron


def _axis(score: str) -> str:
    return "AUROC (0.5 is chance)" if score == "auroc" else score_axis(score)
