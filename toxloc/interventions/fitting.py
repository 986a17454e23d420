"""Fit a method by name, and measure its cost on held-out neutral text."""

from ..evaluation.cost.fluency import measure_fluency
from .base import Intervention
from .evidence import Evidence
from .registry import method_named
from .settings import MethodSettings


def fit_method(name: str, evidence: Evidence, settings: MethodSettings | None = None) -> Intervention:
    """Fit a method by name, and add its cost on `neutral.check` to its record.

    Args:
        name: name of a method.
        evidence: the model and the texts; the model is unchanged when this returns.
        settings: the method's settings; None for its defaults.

    Raises:
        ToxlocError: the method is unknown, or it cannot be fitted.

    Example:
        >>> fit_method("trne", Evidence(lm, toxloc.load_contrast()))     # doctest: +SKIP
    """
    lm, neutral = evidence.lm, evidence.neutral
    fitted = method_named(name).fit(lm, evidence.pairs, settings, evidence=evidence)
    with fitted.applied(lm):
        cost = measure_fluency(lm, neutral.check)
    fitted.note_fit(lm, {"check_perplexity_ratio": cost.perplexity_ratio, "check_kl": cost.kl}, neutral=neutral)
    return fitted
