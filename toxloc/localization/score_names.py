"""The names of the localization scores. This module does not import torch, so that settings can use it quickly."""

from typing import Literal

ScoreName = Literal[
    "activation",
    "gradient_norm",
    "gradient_calibrated",
    "attribution",
    "counterfactual",
    "combined",
    "auroc",
    "editability",
    "routing",
]
