"""Plotly figures. No figure shows prompts or model output, except `token_heatmap` with `masked=False`."""

from .causal import causal_correlations, faithfulness, knockout_layers, removal_curve
from .experts import expert_map
from .frontier import frontier
from .layers import layer_heatmap, relative_depth, toxicity_by_depth
from .neurons import neuron_map
from .png import write_png
from .runs import before_after, cost, editability
from .style import to_html
from .sweeps import change_by_setting, cost_and_gain
from .tokens import token_heatmap

__all__ = [
    "before_after",
    "causal_correlations",
    "change_by_setting",
    "cost",
    "cost_and_gain",
    "editability",
    "expert_map",
    "faithfulness",
    "frontier",
    "knockout_layers",
    "layer_heatmap",
    "neuron_map",
    "relative_depth",
    "removal_curve",
    "to_html",
    "token_heatmap",
    "toxicity_by_depth",
    "write_png",
]
