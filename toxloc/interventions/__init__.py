"""Ways to turn toxicity down, under one interface."""

from .base import Intervention, load_intervention
from .budget import Budget
from .chain import Chain
from .meow2x import Meow2X
from .trne import TRNE

__all__ = ["TRNE", "Budget", "Chain", "Intervention", "Meow2X", "load_intervention"]
