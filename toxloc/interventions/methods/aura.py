"""AurA: turn every unit down by how well it detects toxic text."""

from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float64

from ...models.loaded import LoadedModel
from ...texts.contrast import ContrastSet
from ...texts.neutral import NeutralText
from ..base import check_mode
from ..budget import Budget
from ..tuning import tune
from ..unit_scaling import UnitScaling, unit_aurocs


class AurA(UnitScaling):
    """Multiply unit j, an output of one of the MLPs' linear maps, by α_j = 1 - 2 strength (AUROC_j - .5).

    AUROC_j is that of the unit's largest value in a text, toxic against neutral texts. Units of AUROC .5 and less do
    not detect toxic text and are left alone; at strength 1, the paper's, a perfect detector is silenced.

    Make one with `AurA.fit`; the constructor takes ready factors.

    Source: AurA (Suau et al. 2024, arXiv:2407.12824).

    Example:
        >>> aura = AurA.fit(lm, toxloc.load_contrast())      # doctest: +SKIP
        >>> with aura.applied(lm): ...                       # doctest: +SKIP
    """

    kind: ClassVar[str] = "aura"

    @classmethod
    def fit(cls, lm: LoadedModel, pairs: ContrastSet, *, budget: float | Budget | None = None, mode: str = "hooks",
            neutral: NeutralText | None = None,
            aurocs: Float64[np.ndarray, "n_layers n_units"] | None = None) -> "AurA":
        """Measure the units' AUROC and set the factors.

        Args:
            lm: the model; unchanged when this returns.
            pairs: the contrast set to tell apart.
            budget: the strength is the largest up to 1 that costs no more than this on `neutral.tune`; a number is the
                relative rise of perplexity. By default the strength is 1, whatever that costs.
            mode: see `UnitScaling`.
            neutral: everyday text; by default the built-in one.
            aurocs: what `unit_aurocs` found on the contrast set before.

        Raises:
            ToxlocError: an unknown mode, a budget that is not positive, sides that no unit tells apart, no strength
                within the budget.
        """
        check_mode(mode)
        limits = None if budget is None else Budget.of(budget)
        if aurocs is None:
            aurocs = unit_aurocs(lm, pairs)
        detects = np.maximum(aurocs - 0.5, 0)

        def scaled(strength: float) -> "AurA":
            return cls(torch.from_numpy(1 - 2 * strength * detects), mode=mode, settings={"strength": strength})

        aura = scaled(1.0) if limits is None else tune(lm, scaled, limits, neutral, first=1.0, limit=1.0)
        aura.note_fit(lm, {"n_units": int((detects > 0).sum()), "best_auroc": float(aurocs.max())}, pairs)
        return aura
