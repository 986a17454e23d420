"""How much language quality an intervention may cost."""

import math
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Protocol, runtime_checkable

from pydantic import BeforeValidator

from ..errors import ToxlocError


@runtime_checkable
class Cost(Protocol):
    """What `Budget.share` reads of a `Fluency`."""

    @property
    def perplexity_ratio(self) -> float:
        """Perplexity over the unedited model's."""

    @property
    def kl(self) -> float:
        """KL to the unedited model, in nats per token."""


@dataclass(frozen=True)
class Budget:
    """How much language quality an intervention may cost, on text that no statistic has seen.

    Attributes:
        perplexity: relative rise of perplexity that is allowed: .01 is 1%; None for no such limit.
        kl: mean KL(unedited || edited) of the next-token distribution that is allowed, in nats per token; None for no
            such limit. It sees changes that perplexity does not: of what the text does not happen to say.

    Raises:
        ToxlocError: no limit at all, or one that is not positive.

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
                raise ToxlocError(f"A budget is the {name} that is allowed, such as {example}, not {limit}.")

    @classmethod
    def of(cls, budget: "float | Budget | dict[str, float]") -> "Budget":
        """Return a budget as it is, one of a rise of perplexity from a number, or one of several limits from a mapping.

        Raises:
            ToxlocError: it is none of these.
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

    def scaled(self, factor: float) -> "Budget":
        """Return the budget with each of its limits multiplied."""
        return Budget(*(None if limit is None else factor * limit for limit in (self.perplexity, self.kl)))

    def share(self, cost: Cost) -> float:
        """Return how much of the budget is spent: 1 where the tighter limit is reached, inf for a destroyed model."""
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


AnyBudget = Annotated[Budget, BeforeValidator(_budget)]  # a field that takes what `Budget.of` takes
DEFAULT_BUDGET = Budget(perplexity=0.01)  # of every method
