"""Find the largest strength within a budget with few forward evaluations."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from ..errors import ToxlocError
from ..evaluation.cost.fluency import Fluency, Unedited
from ..models.loaded import LoadedModel
from ..texts.chat_text import ChatText
from ..texts.neutral import NeutralText
from .budget import Budget

EVALUATIONS = 5
MOST_EVALUATIONS = 12  # limit if none of the first evaluations is within the budget
CLOSE_ENOUGH = 0.95  # share of the budget at which the search stops
AIM, LAST_AIM = 0.975, 0.965  # share of the budget that the next strength, and the last, is expected to spend
CAREFUL_AIM = 0.7  # the same for the last number of units, if all within the budget spend less than the share ENOUGH
ENOUGH = 0.5
LARGEST_STEP, SMALLEST_STEP = 4.0, 1 / 30  # limits of the factor by which one evaluation changes the size of the edit
TINY, HUGE = 1e-6, 1e6  # shares of the budget outside these limits say as little of other strengths as 0 and infinity


@runtime_checkable
class Fitted(Protocol):
    """The methods of an intervention that `tune` calls."""

    def applied(self, lm: LoadedModel) -> AbstractContextManager[Any]:
        """Apply the intervention inside a `with` block."""

    def note_fit(self, lm: LoadedModel, record: dict[str, Any], *, neutral: NeutralText | None = None) -> None:
        """Add to the record of the fit."""


I = TypeVar("I", bound=Fitted)  # noqa: E741
Point = tuple[float, float]  # size of an edit, and the share of the budget that it spends


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
    whole: bool = False,
    at_zero: float = 0.0,
    unedited: Sequence[Unedited] = (),
) -> I:
    """Return the intervention at the largest strength within the budget on `neutral.tune`.

    If the text is partly plain and partly in a chat template, the budget is kept in each of the two. The budget, the
    strength, its cost and the number of evaluations are added to the intervention's record.

    Args:
        lm: the model.
        make: function from a positive strength to the intervention.
        budget: limits on the cost.
        neutral: everyday text, of which only the part `tune` is read.
        first: strength to try first.
        limit: largest strength that is allowed.
        whole: whether the strength is a number of units.
        at_zero: share of the budget that is spent at strength 0, by an earlier edit that the intervention contains.
        unedited: predictions of the model without the edit on `neutral.tune`, as `snapshots` returns them; by default
            they are computed.

    Raises:
        ToxlocError: every strength tried was over the budget.
    """
    kl = budget.kl is not None
    unedited = unedited or snapshots(lm, neutral.tune, kl=kl)
    costs: dict[float, list[Fluency]] = {}

    def share(strength: float) -> float:
        with make(strength).applied(lm):
            costs[strength] = [form.compare(kl=kl) for form in unedited]
        return max(map(budget.share, costs[strength]))

    best = largest_within(share, 1.0, first, limit=limit, whole=whole, at_zero=at_zero)
    cost, made = max(costs[best.strength], key=budget.share), make(best.strength)
    record = {
        "budget": budget.to_dict(),
        "spent": best.cost,
        "strength": best.strength,
        "evaluations": best.evaluations,
        "tuned_perplexity_ratio": cost.perplexity_ratio,
        "tuned_kl": cost.kl if kl else None,
    }
    made.note_fit(lm, record, neutral=neutral)
    return made


def snapshots(lm: LoadedModel, texts: Sequence[str], kl: bool = True) -> list[Unedited]:
    """Return the predictions of the model on plain texts, and on texts in a chat template, as far as there are any."""
    forms = ([t for t in texts if isinstance(t, ChatText) == is_chat] for is_chat in (False, True))
    return [Unedited(lm, form, kl=kl) for form in forms if form]


def largest_within(
    cost: Callable[[float], float],
    budget: float,
    first: float,
    *,
    limit: float = math.inf,
    whole: bool = False,
    at_zero: float = 0.0,
    evaluations: int = EVALUATIONS,
) -> Tuned:
    """Find the largest strength with cost <= budget, for a cost that increases once it is positive.

    The second strength is chosen as if the cost were quadratic, which is true of a small edit that does not change
    the perplexity to first order. From then on two curves are fitted through the two strengths next to the budget:
    a power of the strength, and the sum of a linear and a quadratic term, which also describes a perplexity that
    falls before it rises. A third strength shows which curve is closer; if it is the second, a cubic term is added
    so that it passes through all three. The next strength is the one that is expected to spend 97.5% of the budget;
    at the last evaluation 96.5%, or 70% if no number of units that spends half of the budget is known. The search
    stops once 95% is spent, or after `evaluations` evaluations. If all of these are over the budget, it continues,
    up to 12 evaluations in total, until one is within it.

    Args:
        cost: function from a strength to its cost; each call is one evaluation.
        budget: largest cost that is allowed; larger than `at_zero`.
        first: strength to try first.
        limit: largest strength that is allowed.
        whole: whether the strength is a number of units. Then only whole numbers from 1 are tried, none of them twice,
            and the cost is expected to be a function of the square root of the strength: each unit adds its own cost.
        at_zero: cost at strength 0.
        evaluations: maximum number of evaluations.

    Raises:
        ToxlocError: every strength tried was over the budget.

    Example:
        >>> largest_within(lambda s: s**2, 0.01, first=1.0).strength
        0.0987...
    """
    search, costs = _Search(limit, whole), dict[float, float]()
    strength: float | None = search.allowed(first)
    while strength is not None:
        costs[strength] = cost(strength)
        search.shares[strength] = (costs[strength] - at_zero) / (budget - at_zero)
        strength = search.next(evaluations)
    if not search.low:
        raise ToxlocError(
            f"No strength down to {min(costs):.2g} is within the budget; raise the budget or give more contrast texts."
        )
    return Tuned(search.low, costs[search.low], len(costs))


class _Search:
    """The strengths evaluated so far, and the choice of the next.

    The cost is predicted from the size of the edit: the strength or, for a number of units, its square root.

    Attributes:
        shares: share of the budget that is spent, by strength.
    """

    def __init__(self, limit: float, whole: bool):
        self.limit, self.whole = limit, whole
        self.shares: dict[float, float] = {}

    @property
    def low(self) -> float:
        """The largest strength within the budget; 0 if there is none yet."""
        return max((strength for strength, share in self.shares.items() if share <= 1), default=0.0)

    @property
    def high(self) -> float:
        """The smallest strength above `low`, which is over the budget; infinite if there is none yet."""
        return min((strength for strength in self.shares if strength > self.low), default=math.inf)

    def allowed(self, strength: float) -> float:
        """Return the strength, at most the limit, or a whole number from 1."""
        return min(max(1.0, math.floor(strength)) if self.whole else strength, self.limit)

    def next(self, evaluations: int) -> float | None:
        """Return the next strength to evaluate; None at the end of the search."""
        low, high, left = self.low, self.high, evaluations - len(self.shares)
        if low and (self.shares[low] >= CLOSE_ENOUGH or low >= self.limit or left <= 0):
            return None
        if len(self.shares) >= max(evaluations, MOST_EVALUATIONS) or (self.whole and high - low <= 1):
            return None
        size = self._guess(self._aim(left))
        return self.allowed(min(max(size**2, low + 1), high - 1) if self.whole else size)

    def _aim(self, left: int) -> float:
        """Return the share of the budget to spend with the next strength, with `left` evaluations left."""
        if left > 1:
            return AIM
        is_careful = self.whole and self.shares.get(self.low, 0) < ENOUGH  # single units can have large costs
        return CAREFUL_AIM if is_careful else LAST_AIM

    def _size(self, strength: float) -> float:
        return math.sqrt(strength) if self.whole else strength

    def _guess(self, aim: float) -> float:
        """Return the size that is expected to spend the share `aim` of the budget."""
        low, high = self._size(self.low), self._size(self.high)
        known = sorted((self._size(strength), share) for strength, share in self.shares.items() if share < HUGE)
        if not known:
            return SMALLEST_STEP * high
        guess = _extrapolated(*known[0], aim) if len(known) == 1 else _interpolated(known, low, high, aim)
        if math.isinf(high):
            return guess
        unknown = self.shares[self.high] >= HUGE  # how far the cost at `high` is over the budget
        if not low:
            return min(guess, high / LARGEST_STEP if unknown else 0.97 * high)
        if unknown:
            guess = min(guess, math.sqrt(low * high))
        margin = 0.005 * (high - low)
        return min(max(guess, low + margin), high - margin)


def _extrapolated(size: float, share: float, aim: float) -> float:
    """Return the size that spends the share `aim` if the cost is quadratic, from one size and its share."""
    factor = math.sqrt(aim / share) if share > TINY else LARGEST_STEP
    return size * min(max(factor, SMALLEST_STEP), LARGEST_STEP)


def _interpolated(known: list[Point], low: float, high: float, aim: float) -> float:
    """Return the size that is expected to spend the share `aim`, from at least two sizes and their shares.

    Args:
        known: sizes, in ascending order, and their shares.
        low: largest size within the budget; 0 if there is none.
        high: next larger size, which is over the budget; infinite if there is none.
        aim: share of the budget.
    """
    above = next((i for i, (size, _) in enumerate(known) if size >= high), len(known))
    above = min(max(above, 1), len(known) - 1)
    p, q = known[above - 1], known[above]
    curves = [curve for curve in (_power(p, q), _quadratic(p, q)) if curve is not None]
    others = [known[i] for i in (above - 2, above + 1) if 0 <= i < len(known)]
    if curves and others:
        size, share = third = min(others, key=lambda other: min(abs(math.log(other[0] / x)) for x, _ in (p, q)))
        closest = min(curves, key=lambda curve: abs(curve.share(size) - share))
        if isinstance(closest, _Quadratic) and p[1] < aim < q[1]:
            return _on_cubic(p, q, third, aim)
        curves = [closest]
    smallest, largest = low or SMALLEST_STEP * p[0], min(high, LARGEST_STEP * q[0])
    if not curves:
        return largest if q[1] < aim else smallest
    sizes = [min(max(curve.size(aim), smallest), largest) for curve in curves]
    return math.sqrt(sizes[0] * sizes[-1])


@dataclass(frozen=True)
class _Power:
    """The curve share = factor * size**exponent."""

    log_factor: float
    exponent: float

    def share(self, size: float) -> float:
        return math.exp(min(self.log_factor + self.exponent * math.log(size), 99))

    def size(self, share: float) -> float:
        return math.exp(min(max((math.log(share) - self.log_factor) / self.exponent, -99), 99))


@dataclass(frozen=True)
class _Quadratic:
    """The curve share = linear * size + quadratic * size**2, with a positive quadratic term."""

    linear: float
    quadratic: float

    def share(self, size: float) -> float:
        return self.linear * size + self.quadratic * size**2

    def size(self, share: float) -> float:
        return 2 * share / (self.linear + math.hypot(self.linear, 2 * math.sqrt(self.quadratic * share)))


def _power(first: Point, second: Point) -> _Power | None:
    """Return the power through two points; None if it would not increase."""
    (p, at_p), (q, at_q) = first, second
    if not TINY < at_p < at_q:
        return None
    exponent = math.log(at_q / at_p) / math.log(q / p)
    return _Power(math.log(at_p) - exponent * math.log(p), exponent)


def _quadratic(first: Point, second: Point) -> _Quadratic | None:
    """Return the quadratic curve through 0 and two points; None if it would not increase in the end."""
    (p, at_p), (q, at_q) = first, second
    quadratic = (at_q / q - at_p / p) / (q - p)
    return _Quadratic(at_p / p - quadratic * p, quadratic) if quadratic > 0 else None


def _on_cubic(first: Point, second: Point, third: Point, share: float) -> float:
    """Return the size between the first two at which the cubic curve through 0 and three points has a given share."""
    from scipy.optimize import brentq

    (p, at_p), (q, at_q), (r, at_r) = first, second, third
    of_pq = (at_q / q - at_p / p) / (q - p)  # divided differences of share / size
    of_pqr = ((at_r / r - at_q / q) / (r - q) - of_pq) / (r - p)
    root = brentq(lambda x: x * (at_p / p + (x - p) * (of_pq + (x - q) * of_pqr)) - share, p, q, xtol=1e-6 * p)
    return float(root)
