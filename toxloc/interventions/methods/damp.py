"""Damp and Det0: scale, or silence, the units that detect toxic text best."""

import math
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float64

from ...errors import ToxlocError
from ...models.loaded import LoadedModel
from ...texts.contrast import ContrastSet
from ...texts.neutral import NeutralText
from ..base import check_mode
from ..budget import Budget
from ..tuning import tune
from ..unit_scaling import UnitScaling, unit_aurocs


class Damp(UnitScaling):
    """Multiply the k units with the highest AUROC, over the whole model, by `scale`: 0 is Det0, .5 is Damp.

    Units are the outputs of the MLPs' linear maps, their AUROC that of AurA: of the largest value in a text, toxic
    against neutral texts. Only units with an AUROC over .5 count. With all of those, Det0 wrecks a model; AurA needs
    no k.

    Make one with `Damp.fit`; the constructor takes ready factors.

    Source: Det0 is Suau et al. 2022, arXiv:2110.02802; Damp is described beside AurA (Suau et al. 2024,
    arXiv:2407.12824).

    Example:
        >>> det0 = Damp.fit(lm, toxloc.load_contrast(), k=20)     # doctest: +SKIP
        >>> with det0.applied(lm): ...                            # doctest: +SKIP
    """

    kind: ClassVar[str] = "damp"

    @classmethod
    def fit(cls, lm: LoadedModel, pairs: ContrastSet, *, k: int | None = None, scale: float = 0.0,
            budget: float | Budget | None = 0.01, mode: str = "hooks", neutral: NeutralText | None = None,
            aurocs: Float64[np.ndarray, "n_layers n_units"] | None = None) -> "Damp":
        """Scale the best detectors: k of them, or as many as the budget allows.

        Args:
            lm: the model; unchanged when this returns.
            pairs: the contrast set to tell apart.
            k: how many units; `budget` is then not looked at.
            scale: what they are multiplied by, from 0 (removed) to 1 (left alone).
            budget: what it may cost on `neutral.tune`; a number is the relative rise of perplexity.
            mode: see `UnitScaling`.
            neutral: everyday text; by default the built-in one.
            aurocs: what `unit_aurocs` found on the contrast set before.

        Raises:
            ToxlocError: an unknown mode, a scale outside [0, 1], neither k nor a budget, a k of which there are not so
                many units, a budget that is not positive or that one unit alone exceeds.
        """
        check_mode(mode)
        if not 0 <= scale <= 1:
            raise ToxlocError(f"A scale from 0 (remove) to 1 (leave alone) is needed, not {scale}.")
        if k is None and budget is None:
            raise ToxlocError("Damp has no setting of its own for how many units to scale; give k= or budget=.")
        limits = None if k is not None or budget is None else Budget.of(budget)
        if aurocs is None:
            aurocs = unit_aurocs(lm, pairs)
        order = torch.from_numpy(np.argsort(-aurocs, axis=None, kind="stable")[: (aurocs > 0.5).sum()])
        if k is not None and not 1 <= k <= len(order):
            raise ToxlocError(f"k={k} units were asked for; {len(order)} have an AUROC over .5, so give 1 to "
                              f"{len(order)}.")

        def best(count: float) -> "Damp":
            chosen = order[: max(1, math.floor(count))]
            factors = torch.ones(aurocs.size).index_fill(0, chosen, scale)
            return cls(factors.reshape(aurocs.shape), mode=mode, settings={"k": len(chosen), "scale": scale})

        if limits is None:
            assert k is not None
            damp = best(k)
        else:
            damp = tune(lm, best, limits, neutral, first=max(1.0, len(order) / 100), limit=len(order))
        damp.note_fit(lm, {"least_auroc": float(aurocs.flat[int(order[damp.settings["k"] - 1])])}, pairs)
        return damp
