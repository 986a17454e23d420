"""The figure of a mixture of experts: a heatmap of layer against expert."""

import numpy as np
import plotly.graph_objects as go

from ..errors import ToxlocError
from ..support.significance import ALPHA
from .protocols import Localization
from .style import DIVERGING, asked, capital, colour_bar, lay_out, plain, with_unit

PART = "expert"


def expert_map(loc: Localization, score: str = "attribution") -> go.Figure:
    """Draw one score of every expert, with one row per layer and one column per expert.

    A cell is marked if the p-value of the expert, adjusted for testing every expert, is below 0.05.

    Args:
        loc: a localization of experts, from `localize(lm, pairs, scores, parts=("expert",))`.
        score: name of a computed score, such as "routing".

    Raises:
        ToxlocError: experts were not localized, or the score was not computed.

    Example:
        >>> expert_map(loc, "routing")     # doctest: +SKIP
    """
    if PART not in loc.parts:
        raise ToxlocError(
            f"{loc.about['model']} was not localized by experts; its parts are {', '.join(loc.parts)}. Localize with "
            "parts=('expert',), if the model is a mixture of experts."
        )
    sites, values, label = loc.sites(PART), loc.layer_scores(score, PART), loc.score_label(score)
    uncertainty = loc.part_uncertainty(score, PART)
    layers = sorted({site.layer for site in sites})
    n_experts = 1 + max(site.expert or 0 for site in sites)
    cells = np.full((len(layers), n_experts), np.nan)
    marks, hover = np.full(cells.shape, "", dtype=object), np.full(cells.shape, "", dtype=object)
    for i, site in enumerate(sites):
        cell = layers.index(site.layer), site.expert or 0
        cells[cell] = values[i] - label.centre
        hover[cell] = f"{site.title}<br>{plain(label.title)} {values[i]:.3g}"
        if uncertainty is not None:
            hover[cell] += f"<br>adjusted p {uncertainty.p_adjusted[i]:.2g}"
            marks[cell] = "•" if uncertainty.p_adjusted[i] < ALPHA else ""
    limit = float(np.nanmax(np.abs(cells))) or 1.0
    figure = go.Figure(
        go.Heatmap(
            z=cells,
            x=[str(expert) for expert in range(n_experts)],
            y=[f"layer {layer}" for layer in layers],
            text=marks,
            texttemplate="%{text}",
            hovertext=hover,
            hovertemplate="%{hovertext}<extra></extra>",
            zmin=-limit,
            zmax=limit,
            colorscale=DIVERGING,
            colorbar=colour_bar(with_unit(label.title, label.unit)),
        )
    )
    note = "No p-values were computed."
    if uncertainty is not None:
        note = "A dot marks an expert with p < 0.05, adjusted for testing every expert."
        if not marks.any():
            note = "No expert has p < 0.05, adjusted for testing every expert: chance explains these values."
    return lay_out(
        figure,
        f"{capital(label.title)} by expert in {loc.about['model']}",
        asked(label.question, note),
        height=190 + 24 * min(max(6, len(layers)), 128),
        yaxis={"autorange": "reversed"},
        xaxis={"title": {"text": "expert"}, "type": "category"},
    )
