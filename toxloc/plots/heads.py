"""Figures of attention heads: a score of every head, and what one head reads in a text."""

import numpy as np
import plotly.graph_objects as go

from .protocols import AttentionPattern, Localization
from .style import SEQUENTIAL, asked, colour_bar, colour_scale, lay_out, layer_axis, token_axis, with_unit

WEIGHTS = {"attention": "attention weight", "norm": "length of what the head writes"}


def head_map(loc: Localization, score: str = "attribution") -> go.Figure:
    """Draw a score of every attention head, with layers as rows and the heads of a layer in the order of their numbers.

    Args:
        loc: the localization, with attentions.
        score: name of a computed score.

    Raises:
        ToxlocError: the score was not computed, or attentions were not localized.

    Example:
        >>> head_map(localize(lm, pairs, parts=("mlp", "attention")), "attribution")     # doctest: +SKIP
    """
    scores, label = loc.neuron_scores(score, "attention"), loc.score_label(score)
    title = label.neuron_title or label.title
    figure = go.Figure(
        go.Heatmap(
            z=scores,
            y=[f"layer {site.layer}" for site in loc.sites("attention")],
            xgap=1,
            ygap=1,
            **colour_scale(label.centre, scores),
            colorbar=colour_bar(with_unit(title, label.unit)),
            hovertemplate="%{y}, head %{x}<br>score %{z:.3g}<extra></extra>",
        )
    )
    return lay_out(
        figure,
        f"Heads by {title} in {loc.about['model']}",
        asked("which heads have the highest scores?", "Heads have no order: neighbours in a row are unrelated."),
        height=140 + 22 * max(8, len(scores)),
        yaxis={"autorange": "reversed", "showgrid": False},
        xaxis=layer_axis(scores.shape[1]) | {"title": {"text": "head"}, "showgrid": False},
    )


def attention_heatmap(pattern: AttentionPattern, masked: bool = True) -> go.Figure:
    """Draw how much a head reads from each token of a text (columns) at each of its tokens (rows).

    The colour scale is set by the tokens after the first, which can be an attention sink with far larger weights than
    all others. Cells of tokens that are later than the row are empty.

    Args:
        pattern: the pattern of one text.
        masked: whether to mask words; False shows offensive text.

    Example:
        >>> attention_heatmap(attention_pattern(lm, (Site(3, "attention"), 2), text))     # doctest: +SKIP
    """
    labels, axis = token_axis(pattern.shown(masked))
    weights, kind = pattern.weights, WEIGHTS[pattern.by]
    later = np.triu(np.ones(weights.shape, dtype=bool), 1)
    limit = float(weights[:, 1:].max() if len(weights) > 1 else weights.max()) or 1.0
    notes = ["Words are masked."] if masked else []
    notes += ["The first token is beyond the colour scale."] if weights[1:].max(initial=0) > limit else []
    positions = [str(position) for position in range(len(labels))]
    figure = go.Figure(
        go.Heatmap(
            z=np.where(later, np.nan, weights),
            x=positions,
            y=positions,
            text=[[f"at {query}, from {source}" for source in labels] for query in labels],
            hoverongaps=False,
            zmin=0.0,
            zmax=limit,
            colorscale=SEQUENTIAL,
            colorbar=colour_bar(kind),
            hovertemplate=f"%{{text}}<br>{kind} %{{z:.3g}}<extra></extra>",
        )
    )
    return lay_out(
        figure,
        f"Layer {pattern.site.layer}, head {pattern.head}: what it reads",
        asked("from which earlier tokens (columns) does the head read at each token (rows)?", " ".join(notes)),
        height=190 + 18 * max(8, len(labels)),
        xaxis=axis | {"title": {"text": "source token"}, "showgrid": False},
        yaxis=axis | {"title": {"text": "token"}, "tickangle": 0, "autorange": "reversed", "showgrid": False},
    )
