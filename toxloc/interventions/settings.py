"""Settings that the methods share."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from ..errors import ToxlocError
from ..models.sites import Site, sites_of
from ..support.settings import Seed, Settings, option
from .budget import DEFAULT_BUDGET, AnyBudget

Mode = Literal["hooks", "weights"]
MODES = ("hooks", "weights")
SitesChoice = Literal["mlp", "attention", "all"]


def _layers(value: Any) -> Any:
    """Convert a sequence of layers or sites to sites; return a number of layers unchanged."""
    if isinstance(value, Iterable) and not isinstance(value, str):
        sites = sites_of(value)
        if not sites:
            raise ToxlocError("layers=[] leaves nothing to edit; give layers, a number of layers, or omit it.")
        return tuple(sites)
    return value


Layers = Annotated[int | tuple[Site, ...] | None, BeforeValidator(_layers)]


class MethodSettings(Settings):
    """Settings that every method has."""

    budget: AnyBudget = option(
        DEFAULT_BUDGET,
        "maximum cost of the edit on held-out tuning text: the relative rise of perplexity (0.01 is 1%), or limits for "
        "perplexity and kl",
    )
    seed: Seed = option(0, "seed for random splits and random pairings of the contrast set")

    @property
    def outright(self) -> str | None:
        """Name of the setting that fixes the strength, so that the budget is not used; None if the budget sets it."""
        return None

    @property
    def budget_in_words(self) -> str:
        """The budget as text for tables: "perplexity 0.01", "KL 0.02", or "none" if the strength is fixed."""
        if self.outright:
            return "none"
        limits = [] if self.budget.perplexity is None else [f"perplexity {self.budget.perplexity:.3g}"]
        return " and ".join([*limits, *([] if self.budget.kl is None else [f"KL {self.budget.kl:.3g}"])])


class StrengthSettings(MethodSettings):
    """Settings of a method whose strength is a single number."""

    strength: float | None = option(None, "fixed strength of the edit; if given, the budget is not used")

    @property
    def outright(self) -> str | None:
        """Name of the setting that fixes the strength; None if the budget sets it."""
        return None if self.strength is None else "strength"


def check_mode(mode: str) -> None:
    """Raise ToxlocError unless the mode is "hooks" or "weights"."""
    if mode not in MODES:
        raise ToxlocError(f"Unknown mode {mode!r}; choose one of {', '.join(MODES)}.")
