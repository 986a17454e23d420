"""Figure of toxicity against cost, for several methods and budgets."""

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from .style import BLUE, GREY, LEGEND_BELOW, OKABE_ITO, asked, interval, lay_out, plain

FAR = 2.0  # entries that cost more than FAR x the highest cost under a budget would compress the other points
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross")


def frontier(entries: Sequence[dict[str, Any]]) -> go.Figure:
    """Draw the share of toxic completions against the rise of perplexity on unseen text.

    Lower and further left is better.

    Args:
        entries: one entry per method and budget, with the keys "method", "budget" (None for a method without a
            budget), and "toxicity" and "fluency" as in results.json. The entry of the method "baseline" is drawn as a
            horizontal line. An entry without a budget that costs more than twice as much as all entries with a budget
            is left out of the plot and named in the subtitle.
    """
    figure = go.Figure()
    highest = max((_rise(e) for e in entries if e["budget"] is not None), default=0.0)
    within = FAR * highest if highest > 0 else math.inf
    far = [e for e in entries if e["budget"] is None and e["method"] != "baseline" and _rise(e) > within]
    entries = [e for e in entries if e not in far]
    methods = [name for name in dict.fromkeys(entry["method"] for entry in entries) if name != "baseline"]
    for i, name in enumerate(methods):
        points = sorted((entry for entry in entries if entry["method"] == name), key=_rise)
        rates = [entry["toxicity"]["any"] for entry in points]
        figure.add_scatter(
            x=[_rise(entry) for entry in points],
            y=[rate["rate"] for rate in rates],
            name=plain(name),
            mode="lines+markers",
            line={"color": OKABE_ITO[i % len(OKABE_ITO)], "width": 1},
            marker={"size": 9, "symbol": SYMBOLS[i // len(OKABE_ITO) % len(SYMBOLS)]},
            error_y={
                "type": "data",
                "symmetric": False,
                "thickness": 1,
                "array": [rate["rate_ci"][1] - rate["rate"] for rate in rates],
                "arrayminus": [rate["rate"] - rate["rate_ci"][0] for rate in rates],
            },
            text=[_hover(entry) for entry in points],
            hovertemplate="%{fullData.name}<br>%{text}<extra></extra>",
        )
    for entry in entries:
        if entry["method"] == "baseline":
            figure.add_hline(
                entry["toxicity"]["any"]["rate"],
                line={"color": GREY, "dash": "dash"},
                annotation={"text": "unedited", "yanchor": "bottom", "font": {"color": BLUE}},
            )
    off_scale = "".join(
        f" Off the scale: {e['method']}, {e['toxicity']['any']['rate']:.1%} at {_rise(e):+.0%}." for e in far
    )
    return lay_out(
        figure,
        "Toxicity against cost",
        asked(
            "which method removes most toxicity at a given cost?",
            f"Lower and further left is better. Bars are 95% intervals over prompts.{off_scale}",
        ),
        height=520,
        legend=LEGEND_BELOW,
        showlegend=True,
        xaxis={
            "title": {"text": "rise of perplexity on unseen everyday text"},
            "tickformat": "+.1%",
            "zerolinecolor": GREY,
        },
        yaxis={"title": {"text": "toxic completions, by any evaluator"}, "tickformat": ".0%", "rangemode": "tozero"},
    ).update_layout(margin_b=170)


def _rise(entry: dict[str, Any]) -> float:
    return float(entry["fluency"]["perplexity_ratio"]) - 1


def _hover(entry: dict[str, Any]) -> str:
    rate = entry["toxicity"]["any"]
    budget = "no budget" if entry["budget"] is None else f"budget {entry['budget']:.0%}"
    low, high = rate["rate_ci"]
    return (
        f"{budget}<br>toxic {rate['rate']:.1%}, {interval(low, high, '.1%')}<br>"
        f"perplexity {_rise(entry):+.2%}, KL {entry['fluency']['kl']:.3g} nats"
    )
