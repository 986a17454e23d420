"""AurA: turn every unit down by how well it detects toxic text."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ...support.settings import option
from ..settings import Mode, StrengthSettings
from ..unit_scaling import UnitScaling

if TYPE_CHECKING:
    from ..evidence import Evidence


class AurASettings(StrengthSettings):
    """Settings of AurA; a strength of 1 is the paper's."""

    strength: float | None = option(
        None, "sets the strength outright, up to 1, the paper's; the budget is then not used", gt=0, le=1
    )
    mode: Mode = option("hooks", "hooks: hooks on both module trees; weights: the weights are edited")


class AurA(UnitScaling):
    """Multiply unit j, an output of one of the MLPs' linear maps, by α_j = 1 - 2 strength (AUROC_j - .5).

    AUROC_j is that of the unit's largest value in a text, toxic against neutral texts. Units of AUROC .5 and less do
    not detect toxic text and are left alone; at strength 1, the paper's, a perfect detector is silenced.

    Make one with `AurA.fit`; the constructor takes ready factors.

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
        detects = np.maximum(aurocs - 0.5, 0)

        def scaled(strength: float) -> AurA:
            return cls(
                torch.from_numpy(1 - 2 * strength * detects), mode=settings.mode, settings={"strength": strength}
            )

        aura = evidence.at_strength(scaled, settings, first=1.0, limit=1.0)
        aura.note_fit(evidence.lm, {"n_units": int((detects > 0).sum()), "best_auroc": float(aurocs.max())})
        return aura
