"""Plotly figures. No figure shows prompts or model output, except those of tokens with `masked=False`."""

from .causal import causal_correlations, knockout_layers, removal_curve
from .experts import expert_map
from .faithfulness import faithfulness
from .frontier import frontier
from .heads import attention_heatmap, head_map
from .layers import layer_heatmap, relative_depth, toxicity_by_depth
from .logit_lens import logit_lens
from .neurons import neuron_map
from .png import write_png
from .runs import before_after, cost, editability
from .style import to_html
from .sweeps import change_by_setting, cost_and_gain
from .tokens import token_heatmap

__all__ = [
    "attention_heatmap",
    "before_after",
    "causal_correlations",
    "change_by_setting",
    "cost",
    "cost_and_gain",
    "editability",
    "expert_map",
    "faithfulness",
    "frontier",
    "head_map",
    "knockout_layers",
    "layer_heatmap",
    "logit_lens",
    "neuron_map",
    "relative_depth",
    "removal_curve",
    "to_html",
    "token_heatmap",
    "toxicity_by_depth",
    "write_png",
]
