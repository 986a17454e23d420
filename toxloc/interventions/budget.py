"""The budget of an intervention: limits on its cost in language quality."""

import math
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Protocol, runtime_checkable

from pydantic import BeforeValidator

from ..errors import ToxlocError


@runtime_checkable
class Cost(Protocol):
    """The properties of `Fluency` that `Budget.share` reads."""

    @property
    def perplexity_ratio(self) -> float:
        """Perplexity divided by that of the unedited model."""

    @property
    def kl(self) -> float:
        """KL(unedited || edited), in nats per token."""


@dataclass(frozen=True)
class Budget:
    """Limits on the cost of an intervention in language quality, on text that is held out from all statistics.

    Attributes:
        perplexity: allowed relative rise of perplexity: .01 is 1%; None for no limit.
        kl: allowed mean KL(unedited || edited) of the next-token distribution, in nats per token; None for no limit.
            Unlike perplexity, it also measures changes in the probability of tokens that do not occur in the text.

    Raises:
        ToxlocError: no limit, or a limit that is not between 0 and 10.

    Example:
        >>> from toxloc.evaluation.cost.fluency import Fluency
        >>> Budget(perplexity=0.01, kl=0.02).share(Fluency(30.0, 1.005, 0.02, 0.97, 1000))
        1.0
    """

    perplexity: float | None = None
    kl: float | None = None

    def __post_init__(self) -> None:
        if self.perplexity is None and self.kl is None:
            raise ToxlocError("A budget needs perplexity= or kl=; without either, any strength is within it.")
        for name, limit, example in (("rise of perplexity", self.perplexity, 0.01), ("KL in nats", self.kl, 0.01)):
            if limit is not None and not 0 < limit < 10:
                raise ToxlocError(f"The allowed {name} must be between 0 and 10, such as {example}, not {limit}.")

    @classmethod
    def of(cls, budget: "float | Budget | dict[str, float]") -> "Budget":
        """Convert a number (a rise of perplexity) or a mapping of limits to a budget; return a budget unchanged.

        Raises:
            ToxlocError: the value is none of these, or a limit is out of range.
        """
        if isinstance(budget, Budget):
            return budget
        if isinstance(budget, dict):
            unknown = set(budget) - {"perplexity", "kl"}
            if not unknown:
                return cls(**budget)
        elif isinstance(budget, int | float) and not isinstance(budget, bool):
            return cls(perplexity=budget)
        raise ToxlocError(
            f"budget={budget!r} is not a budget; give a rise of perplexity such as 0.01, or the limits "
            "perplexity and kl. To set the strength without a budget, give strength=."
        )

    @property
    def least(self) -> float:
        """The smallest limit. The second-order change of the predictions predicts both kinds of cost."""
        return min(limit for limit in (self.perplexity, self.kl) if limit is not None)

    def scaled(self, factor: float) -> "Budget":
        """Return the budget with every limit multiplied by `factor`."""
        return Budget(*(None if limit is None else factor * limit for limit in (self.perplexity, self.kl)))

    def share(self, cost: Cost) -> float:
        """Return the share of the budget that is spent: 1 at the tighter limit, inf for a model that is destroyed."""
        shares = []
        if self.perplexity is not None:
            shares.append((cost.perplexity_ratio - 1) / self.perplexity)
        if self.kl is not None:
            shares.append(cost.kl / self.kl)
        return max(shares) if all(map(math.isfinite, shares)) else math.inf

    def to_dict(self) -> dict[str, float | None]:
        """Return the fields by name."""
        return asdict(self)


def _budget(value: Any) -> Budget:
    return Budget.of(value)


AnyBudget = Annotated[Budget, BeforeValidator(_budget)]  # a settings field that accepts what `Budget.of` accepts
DEFAULT_BUDGET = Budget(perplexity=0.01)  # the default of every method
