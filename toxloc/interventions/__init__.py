"""Ways to turn toxicity down, under one interface."""

from .ablation import DirectionalAblation
from .act import LinearAcT
from .aura import AurA
from .base import Intervention, load_intervention
from .budget import Budget
from .chain import Chain
from .damp import Damp
from .meow2x import Meow2X
from .profs import ProFS
from .steering import Steering
from .trne import TRNE
from .value_vectors import ValueVector

__all__ = ["TRNE", "AurA", "Budget", "Chain", "Damp", "DirectionalAblation", "Intervention", "LinearAcT", "Meow2X",
           "ProFS", "Steering", "ValueVector", "load_intervention"]
