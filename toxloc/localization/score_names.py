"""The names of the localization scores. They are here so that settings can name them without importing torch."""

from typing import Literal

ScoreName = Literal[
    "activation", "gradient_norm", "gradient_calibrated", "attribution", "combined", "auroc", "editability"
]
