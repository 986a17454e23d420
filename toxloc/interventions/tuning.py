"""Find the largest strength within a budget with few forward evaluations."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from ..errors import ToxlocError
from ..evaluation.cost.fluency import Fluency, Unedited
from ..models.loaded import LoadedModel
from ..texts.neutral import NeutralText
from .budget import Budget

CLOSE_ENOUGH = 0.95  # share of the budget at which the search stops


@runtime_checkable
class Fitted(Protocol):
    """The methods of an intervention that `tune` calls."""

    def applied(self, lm: LoadedModel) -> AbstractContextManager[Any]:
        """Apply the intervention inside a `with` block."""

    def note_fit(self, lm: LoadedModel, record: dict[str, Any], *, neutral: NeutralText | None = None) -> None:
        """Add to the record of the fit."""


I = TypeVar("I", bound=Fitted)  # noqa: E741


@dataclass(frozen=True)
class Tuned:
    """A strength, its cost, and the number of evaluations that were needed to find it."""

    strength: float
    cost: float
    evaluations: int


def tune(
    lm: LoadedModel,
    make: Callable[[float], I],
    budget: Budget,
    neutral: NeutralText,
    first: float,
    *,
    limit: float = math.inf,
    unedited: Unedited | None = None,
) -> I:
    """Return the intervention at the largest strength within the budget on `neutral.tune`.

    The budget, the strength, its cost and the number of evaluations are added to the intervention's record.

    Args:
        lm: the model.
        make: function from a positive strength to the intervention.
        budget: limits on the cost.
        neutral: everyday text, of which only the part `tune` is read.
        first: strength to try first.
        limit: largest strength that is allowed.
        unedited: predictions of the model without the edit on `neutral.tune`; by default they are computed.

    Raises:
        ToxlocError: every strength tried was over the budget.
    """
    unedited = unedited or Unedited(lm, neutral.tune, kl=budget.kl is not None)
    costs: dict[float, Fluency] = {}

    def share(strength: float) -> float:
        with make(strength).applied(lm):
            costs[strength] = unedited.compare()
        return budget.share(costs[strength])

    best = largest_within(share, 1.0, first, limit=limit)
    cost, made = costs[best.strength], make(best.strength)
    record = {
        "budget": budget.to_dict(),
        "strength": best.strength,
        "evaluations": best.evaluations,
        "tuned_perplexity_ratio": cost.perplexity_ratio,
        "tuned_kl": cost.kl if budget.kl is not None else None,
    }
    made.note_fit(lm, record, neutral=neutral)
    return made


def largest_within(
    cost: Callable[[float], float], budget: float, first: float, *, limit: float = math.inf, evaluations: int = 12
) -> Tuned:
    """Find the largest strength with cost <= budget, for a cost that is 0 at strength 0 and increases.

    The cost between two evaluated strengths is modelled as a power of the strength (power 2 for a small change of
    weights), which needs far fewer evaluations than bisection. Once a strength within the budget and a strength over it
    are known, the search interpolates between these two, and every third evaluation bisects the interval, in case the
    cost is far from a power. The search stops once 95% of the budget is spent.

    Args:
        cost: function from a strength to its cost; each call is one evaluation.
        budget: largest cost that is allowed; positive.
        first: strength to try first.
        limit: largest strength that is allowed.
        evaluations: maximum number of evaluations.

    Raises:
        ToxlocError: every strength tried was over the budget.

    Example:
        >>> largest_within(lambda s: s**2, 0.01, first=1.0).strength
        0.099...
    """
    low, high, over = Tuned(0.0, 0.0, 0), math.inf, math.inf
    strength, previous = min(first, limit), (0.0, 0.0)
    for used in range(1, evaluations + 1):
        spent = cost(strength)
        if spent <= budget:
            low = Tuned(strength, spent, used)
            if spent >= CLOSE_ENOUGH * budget or strength >= limit:
                return low
        else:
            high, over = strength, spent
        if low.strength > 0 and math.isfinite(high):
            room = high - low.strength
            guess = (low.strength + high) / 2 if used % 3 == 0 else _between(low, high, over, budget)
            guess = min(max(guess, low.strength + 0.05 * room), high - 0.05 * room)
        else:
            guess = min(strength * _factor(strength, spent, previous, budget), 0.95 * high)
        previous = (strength, spent)
        strength = min(guess, limit)
    if low.strength == 0:
        raise ToxlocError(
            f"No strength down to {strength:.2g} is within the budget; raise the budget or give more contrast texts."
        )
    return Tuned(low.strength, low.cost, evaluations)


def _between(low: Tuned, high: float, over: float, budget: float) -> float:
    """Return the strength between `low` and `high` at which the interpolated cost is 98% of the budget.

    The interpolation is a power if the costs at both ends are positive, otherwise linear. If the cost `over` at `high`
    is infinite, the midpoint is returned.
    """
    if not math.isfinite(over):
        return (low.strength + high) / 2
    if low.cost <= 0:
        return low.strength + (0.98 * budget - low.cost) / (over - low.cost) * (high - low.strength)
    power = math.log(over / low.cost) / math.log(high / low.strength)
    return float(low.strength * (0.98 * budget / low.cost) ** (1 / power))


def _factor(strength: float, spent: float, previous: tuple[float, float], budget: float) -> float:
    """Return the factor of the strength that makes the cost, as a power of the strength, 98% of the budget."""
    if not math.isfinite(spent):
        return 0.1
    if spent <= 0:
        return 2.0
    power = 2.0
    if previous[1] > 0 and math.isfinite(previous[1]) and previous[0] != strength and previous[1] != spent:
        power = math.log(spent / previous[1]) / math.log(strength / previous[0])
    power = min(max(power, 0.7), 4.0)
    return float(min(max((0.98 * budget / spent) ** (1 / power), 0.1), 4.0))
