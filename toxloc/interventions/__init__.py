"""Ways to turn toxicity down, under one interface."""

from .base import Intervention, load_intervention
from .meow2x import Meow2X
from .trne import TRNE

__all__ = ["TRNE", "Intervention", "Meow2X", "load_intervention"]
