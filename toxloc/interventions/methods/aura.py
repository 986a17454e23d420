"""AurA: scale every unit down by how well it detects toxic text."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ...support.settings import option
from ..settings import Mode, StrengthSettings
from ..unit_scaling import UnitScaling

if TYPE_CHECKING:
    from ..evidence import Evidence


class AurASettings(StrengthSettings):
    """Settings of AurA; the paper's strength is 1."""

    strength: float | None = option(
        None, "fixed strength, at most 1 (the paper's strength); if given, the budget is not used", gt=0, le=1
    )
    mode: Mode = option("hooks", "hooks: change the activations with hooks; weights: edit the weights")


class AurA(UnitScaling):
    """Multiply each unit j, an output of the MLPs' linear maps, by α_j = 1 - 2 strength (AUROC_j - .5).

    AUROC_j is the AUROC of the unit's largest value in a text, for toxic against neutral texts. Units with an AUROC of
    .5 or less do not detect toxic text and are not changed. At strength 1, as in the paper, a perfect detector is
    multiplied by 0.

    `AurA.fit` computes the factors from texts; the constructor takes given factors.

    Source: AurA (Suau et al. 2024, arXiv:2407.12824).

    Example:
        >>> aura = AurA.fit(lm, toxloc.load_contrast(), strength=1)      # doctest: +SKIP
        >>> with aura.applied(lm): ...                                   # doctest: +SKIP
    """

    kind: ClassVar[str] = "aura"
    title: ClassVar[str] = "AurA"
    paper: ClassVar[str] = "AurA, Suau et al. 2024, arXiv:2407.12824"
    Settings = AurASettings

    @classmethod
    def _fit(cls, evidence: Evidence, settings: AurASettings) -> AurA:
        import numpy as np
        import torch

        aurocs = evidence.unit_aurocs
        detects = {site: np.maximum(values - 0.5, 0) for site, values in aurocs.items()}

        def scaled(strength: float) -> AurA:
            factors = {site: torch.from_numpy(1 - 2 * strength * values) for site, values in detects.items()}
            return cls(factors, mode=settings.mode, settings={"strength": strength})

        aura = evidence.at_strength(scaled, settings, first=1.0, limit=1.0)
        aura.note_fit(
            evidence.lm,
            {
                "n_units": sum(int((values > 0).sum()) for values in detects.values()),
                "best_auroc": max(float(values.max()) for values in aurocs.values()),
            },
        )
        return aura
