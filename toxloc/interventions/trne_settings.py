"""Settings of TRNE."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ..errors import ToxlocError
from ..models.sites import Site
from ..support.settings import option
from .settings import Layers, SitesChoice, StrengthSettings


def _emphasis(value: Any) -> Any:
    """Convert the keys of a mapping to sites."""
    if not isinstance(value, dict):
        return value
    return {
        Site.of(int(key) if isinstance(key, str) and key.isdigit() else key): factor for key, factor in value.items()
    }


class TRNESettings(StrengthSettings):
    """Settings of TRNE."""

    strength: float | None = option(
        None, "fixed strength: the relative norm ε (frobenius) or s (kl); if given, the budget is not used", gt=0
    )
    metric: Literal["kl", "frobenius"] = option(
        "kl",
        "cost that bounds the edit: the change of the predictions on neutral text (kl), or the norm of ΔW, as in the "
        "paper (frobenius)",
    )
    norm: float | None = option(
        None,
        "fixed relative norm ε: the squares of ||ΔW||_F / ||W||_F over all edited sites sum to ε²; if given, the "
        "budget is not used",
        gt=0,
    )
    sites: SitesChoice = option("mlp", "weights to edit: mlp (W_out), attention (W_O), or all")
    layers: Layers = option(
        None,
        "layers to edit, or how many; a number selects the layers with the largest gradient norm (frobenius; default: "
        "1) or editability (kl; default: all)",
    )
    emphasis: Annotated[dict[Site, Annotated[float, Field(ge=0)]], BeforeValidator(_emphasis)] = option(
        {}, "factors that multiply the strength of single layers; to second order, equal factors are optimal"
    )
    ridge: float | Literal["auto"] = option(
        1.0,
        "ridge added to C and S (kl), as a multiple of their mean eigenvalue; auto holds out a fifth of the contrast "
        "set and chooses the ridge .1, .3, 1 or 3 whose edit within the budget raises the held-out contrast most",
    )
    shrink: bool = option(
        False,
        "compute G on each half of the contrast set, and σ₁ and the direction from what the two halves agree on (kl), "
        "so that a layer whose gradient is mostly noise is edited little",
    )
    fisher: Literal["empirical", "sampled"] = option(
        "empirical",
        "tokens whose gradients make up S (kl): the tokens of the texts (empirical) or tokens sampled from the model "
        "(sampled)",
    )
    rounds: int = option(
        1,
        "number of rounds; each spends an equal share of the budget, and from the second round on, G, C and S are "
        "computed again on the edited model and a further rank-one change is added to each layer",
        ge=1,
    )

    @model_validator(mode="after")
    def _check_compatible(self) -> TRNESettings:
        automatic = self.ridge == "auto"
        if not automatic and self.ridge <= 0:  # type: ignore[operator]
            raise ToxlocError(f'ridge must be positive, or "auto", not {self.ridge!r}.')
        if self.metric == "frobenius" and (automatic or self.shrink):
            raise ToxlocError('ridge="auto" and shrink=True need metric="kl"; metric="frobenius" uses no curvature.')
        given = [self.norm is not None, self.strength is not None, "budget" in self.model_fields_set]
        if sum(given) > 1:
            raise ToxlocError("Give one of budget=, norm= and strength=: each sets the strength.")
        if self.rounds > 1 and self.outright:
            raise ToxlocError(
                f"rounds={self.rounds}: with more than one round, give a budget instead of {self.outright}=."
            )
        return self

    @property
    def outright(self) -> str | None:
        """Name of the setting that fixes the strength; None if the budget sets it."""
        return "norm" if self.norm is not None else super().outright

    @property
    def shares_statistics(self) -> bool:
        """Whether the fit can use statistics shared with other methods, instead of gathering them itself."""
        return self.ridge != "auto" and not self.shrink and self.fisher == "empirical"
