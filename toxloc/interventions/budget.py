"""The largest strength of an intervention whose cost stays within a budget, found by a few forward evaluations."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import ToxlocError
from ..fluency import mean_nll
from ..model import LoadedModel
from .base import Intervention

CLOSE_ENOUGH = 0.95  # of the budget spent


@dataclass(frozen=True)
class Tuned:
    """A strength, what it costs on the tuning text, and how many evaluations that took."""

    strength: float
    cost: float
    evaluations: int


def check_budget(budget: float) -> None:
    """Raise ToxlocError unless the budget is a positive share."""
    if not 0 < budget < 10:
        raise ToxlocError(f"A budget is the relative rise of perplexity that is allowed, such as 0.01, not {budget}.")


def perplexity_rise(lm: LoadedModel, texts: Sequence[str]) -> Callable[[Intervention], float]:
    """Return a function from an intervention to the relative rise of perplexity on `texts` that it brings."""
    before = mean_nll(lm, texts)

    def rise(intervention: Intervention) -> float:
        with intervention.applied(lm):
            after = mean_nll(lm, texts, describe="tuning the strength")
        return math.expm1(min(after - before, 50.0)) if math.isfinite(after) else math.inf

    return rise


def largest_within(cost: Callable[[float], float], budget: float, first: float, *, limit: float = math.inf,
                   evaluations: int = 12) -> Tuned:
    """Find the largest strength with cost <= budget, for a cost that is 0 at 0 and rises.

    Between two known points the cost is taken for a power of the strength (2 for a small change of weights), which
    needs far fewer evaluations than halving; a bracket guards against that being wrong. It stops once 95% of the
    budget are spent.

    Args:
        cost: of a strength; each call is one evaluation.
        budget: positive.
        first: strength to try first.
        limit: largest strength there is.
        evaluations: at most so many.

    Raises:
        ToxlocError: every strength tried was over the budget.

    Example:
        >>> largest_within(lambda s: s**2, 0.01, first=1.0).strength
        0.099...
    """
    low, high = Tuned(0.0, 0.0, 0), math.inf
    strength, previous = min(first, limit), (0.0, 0.0)
    for used in range(1, evaluations + 1):
        spent = cost(strength)
        if spent <= budget:
            low = Tuned(strength, spent, used)
            if spent >= CLOSE_ENOUGH * budget or strength >= limit:
                return low
        else:
            high = strength
        guess = strength * _factor(strength, spent, previous, budget)
        if math.isfinite(high):
            room = high - low.strength
            guess = min(max(guess, low.strength + 0.05 * room), high - 0.05 * room)
        previous = (strength, spent)
        strength = min(guess, limit)
    if low.strength == 0:
        raise ToxlocError(f"No strength down to {strength:.2g} keeps the perplexity within {budget:.2%}; "
                          "raise the budget or give more contrast text.")
    return Tuned(low.strength, low.cost, evaluations)


def _factor(strength: float, spent: float, previous: tuple[float, float], budget: float) -> float:
    """By what to multiply the strength so that the cost, as a power of it, is 98% of the budget."""
    if not math.isfinite(spent):
        return 0.1
    if spent <= 0:
        return 2.0
    power = 2.0
    if previous[1] > 0 and math.isfinite(previous[1]) and previous[0] != strength and previous[1] != spent:
        power = math.log(spent / previous[1]) / math.log(strength / previous[0])
    power = min(max(power, 0.7), 4.0)
    return float(min(max((0.98 * budget / spent) ** (1 / power), 0.1), 4.0))
