"""Settings that the methods share, and how grids and commands check the settings of a method by name."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from ..errors import ToxlocError
from ..models.sites import Site, sites_of
from ..support.settings import Settings, option
from .budget import DEFAULT_BUDGET, AnyBudget

Mode = Literal["hooks", "weights"]
MODES = ("hooks", "weights")
SitesChoice = Literal["mlp", "attention", "all"]


def parts_of_choice(choice: str) -> tuple[str, ...]:
    """Return the parts that a choice of sites stands for; "all" is every part."""
    return () if choice == "all" else (choice,)


def _layers(value: Any) -> Any:
    """Turn a sequence of layers or sites into sites; a count stays a count."""
    if isinstance(value, Iterable) and not isinstance(value, str):
        sites = sites_of(value)
        if not sites:
            raise ToxlocError("layers=[] leaves nothing to edit; give layers, how many, or leave it out.")
        return tuple(sites)
    return value


Layers = Annotated[int | tuple[Site, ...] | None, BeforeValidator(_layers)]


class MethodSettings(Settings):
    """Settings of every method."""

    budget: AnyBudget = option(
        DEFAULT_BUDGET,
        "what the edit may cost on tuning text that no statistic has seen: the "
        "relative rise of perplexity (0.01 is 1%), or the limits perplexity "
        "and kl",
    )
    seed: int = option(0, "seed for random divisions of the contrast set", ge=0)

    @property
    def outright(self) -> str | None:
        """The setting that fixes the strength, so that the budget is not used; None if the budget does."""
        return None

    @property
    def budget_in_words(self) -> str:
        """The budget, for tables: "perplexity 0.01", "KL 0.02", or "none" if the strength is fixed."""
        if self.outright:
            return "none"
        limits = [] if self.budget.perplexity is None else [f"perplexity {self.budget.perplexity:.3g}"]
        return " and ".join([*limits, *([] if self.budget.kl is None else [f"KL {self.budget.kl:.3g}"])])


class StrengthSettings(MethodSettings):
    """Settings of a method whose strength is one number."""

    strength: float | None = option(None, "sets the strength outright; the budget is then not used")

    @property
    def outright(self) -> str | None:
        """The setting that fixes the strength."""
        return None if self.strength is None else "strength"


def check_mode(mode: str) -> None:
    """Raise ToxlocError unless the mode is "hooks" or "weights"."""
    if mode not in MODES:
        raise ToxlocError(f"Unknown mode {mode!r}; choose one of {', '.join(MODES)}.")
