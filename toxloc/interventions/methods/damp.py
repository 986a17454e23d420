"""Damp and Det0: scale down, or remove, the units that detect toxic text best."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ...errors import ToxlocError
from ...support.settings import option
from ..settings import MethodSettings, Mode
from ..unit_scaling import UnitScaling

if TYPE_CHECKING:
    from ..evidence import Evidence


class DampSettings(MethodSettings):
    """Settings of Damp and Det0."""

    k: int | None = option(None, "fixed number of units to scale; if given, the budget is not used", ge=1)
    scale: float = option(
        0.0, "factor of the chosen units: 0 removes them (Det0), 0.5 is Damp, 1 leaves them unchanged", ge=0, le=1
    )
    mode: Mode = option("hooks", "hooks: change the activations with hooks; weights: edit the weights")

    @property
    def outright(self) -> str | None:
        """Name of the setting that fixes how many units are scaled; None if the budget sets it."""
        return None if self.k is None else "k"


class Damp(UnitScaling):
    """Multiply the k units of the whole model with the highest AUROC by `scale`: 0 is Det0, .5 is Damp.

    Units are the outputs of the MLPs' linear maps. As in AurA, the AUROC of a unit is that of its largest value in a
    text, for toxic against neutral texts. Only units with an AUROC over .5 are scaled. Removing all of these units
    (Det0) destroys a model; AurA needs no k. Without k, as many units are scaled as the budget allows.

    `Damp.fit` computes the factors from texts; the constructor takes given factors.

    Source: Det0 is Suau et al. 2022, arXiv:2110.02802; Damp is described together with AurA (Suau et al. 2024,
    arXiv:2407.12824).

    Example:
        >>> det0 = Damp.fit(lm, toxloc.load_contrast(), k=20)     # doctest: +SKIP
        >>> with det0.applied(lm): ...                            # doctest: +SKIP
    """

    kind: ClassVar[str] = "damp"
    title: ClassVar[str] = "Damp"
    paper: ClassVar[str] = "Det0, Suau et al. 2022, arXiv:2110.02802; Damp, Suau et al. 2024, arXiv:2407.12824"
    Settings = DampSettings

    @classmethod
    def _fit(cls, evidence: Evidence, settings: DampSettings) -> Damp:
        import numpy as np
        import torch

        by_site, k = evidence.unit_aurocs, settings.k
        aurocs = np.concatenate(list(by_site.values()))
        order = torch.from_numpy(np.argsort(-aurocs, axis=None, kind="stable")[: (aurocs > 0.5).sum()])
        if k is not None and k > len(order):
            raise ToxlocError(
                f"k={k} is out of range; {len(order)} units have an AUROC over .5, so give 1 to {len(order)}."
            )

        def best(count: float) -> Damp:
            chosen = order[: int(count)]
            factors = torch.ones(aurocs.size).index_fill(0, chosen, settings.scale)
            rows = factors.split([len(values) for values in by_site.values()])
            return cls(
                dict(zip(by_site, rows, strict=True)),
                mode=settings.mode,
                settings={"k": len(chosen), "scale": settings.scale},
            )

        if k is not None:
            damp = best(k)
        else:
            damp = evidence.strongest(best, settings.budget, first=len(order) / 100, limit=len(order), whole=True)
        damp.note_fit(evidence.lm, {"least_auroc": float(aurocs.flat[int(order[damp.settings["k"] - 1])])})
        return damp
