"""The methods that can be fitted by name, and where each kind of intervention was published."""

from typing import Protocol, runtime_checkable

from ..errors import ToxlocError
from ..evaluation.cost.fluency import measure_fluency
from ..models.loaded import LoadedModel
from ..texts.contrast import ContrastSet
from ..texts.neutral import NeutralText
from .base import Intervention
from .budget import Budget
from .methods.ablation import DirectionalAblation
from .methods.aura import AurA
from .methods.damp import Damp
from .methods.linear_act import LinearAcT
from .methods.meow2x import Meow2X
from .methods.profs import ProFS
from .methods.steering import Steering
from .methods.trne import TRNE
from .methods.value_vector import ValueVector


@runtime_checkable
class Method(Protocol):
    """A class of interventions that finds its own strength."""

    def fit(self, lm: LoadedModel, pairs: ContrastSet, *, budget: float | Budget = ...,
            neutral: NeutralText | None = ...) -> Intervention:
        """Fit it to a model within a budget; without one, as the method has it by default."""
        ...


METHODS: dict[str, Method] = {
    "trne": TRNE, "meow2x": Meow2X, "aura": AurA, "damp": Damp, "linear-act": LinearAcT, "value-vector": ValueVector,
    "profs": ProFS, "steering": Steering, "ablation": DirectionalAblation,
}

PAPERS = {
    "trne": '"Where Does Toxicity Live?", arXiv:2605.27997',
    "meow2x": '"Where Does Toxicity Live?", arXiv:2605.27997',
    "aura": "AurA, Suau et al. 2024, arXiv:2407.12824",
    "damp": "Det0, Suau et al. 2022, arXiv:2110.02802; Damp, Suau et al. 2024, arXiv:2407.12824",
    "profs": "ProFS, Uppaal et al. 2024, arXiv:2405.13967",
    "ablation": "directional ablation, Arditi et al. 2024, arXiv:2406.11717",
    "linear-act": "Linear-AcT, Rodriguez et al. 2024, arXiv:2410.23054",
    "value-vector": "toxic value vectors, Lee et al. 2024, arXiv:2401.01967",
    "steering": "mean-difference steering (CAA), Rimsky et al. 2024, arXiv:2312.06681",
}


def check_method(name: str) -> Method:
    """Return the method of this name.

    Raises:
        ToxlocError: there is none; the message lists those that are.
    """
    if name not in METHODS:
        raise ToxlocError(f"Unknown method {name!r}; choose one of {', '.join(METHODS)}.")
    return METHODS[name]


def fit_method(name: str, lm: LoadedModel, pairs: ContrastSet, neutral: NeutralText,
               budget: Budget | None = None) -> Intervention:
    """Fit a method by name, and note in it what it costs on `neutral.check`.

    Args:
        name: a key of METHODS.
        lm: the model; unchanged when this returns.
        pairs: the contrast set.
        neutral: everyday text.
        budget: what it may cost on `neutral.tune`; None for the method's own default.

    Raises:
        ToxlocError: an unknown method, or the method cannot be fitted.

    Example:
        >>> fit_method("trne", lm, load_contrast(), load_neutral())     # doctest: +SKIP
    """
    method = check_method(name)
    fitted = method.fit(lm, pairs, neutral=neutral) if budget is None else method.fit(lm, pairs, budget=budget,
                                                                                      neutral=neutral)
    with fitted.applied(lm):
        cost = measure_fluency(lm, neutral.check)
    fitted.note_fit(lm, {"check_perplexity_ratio": cost.perplexity_ratio, "check_kl": cost.kl}, neutral=neutral)
    return fitted
