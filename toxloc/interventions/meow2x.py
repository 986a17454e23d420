"""Meow2X: scale the located parts, with hooks at inference or the same baked into the weights."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..architectures import architecture
from ..errors import ToxlocError
from ..model import LoadedModel
from ..prompts import ContrastSet, NeutralText, load_neutral
from ..scores import SCORES
from ..sites import change, mlp_write
from ..sites import neurons as neurons_of
from ..statistics import ContrastStatistics, collect_contrast
from .base import Intervention, overwrite
from .budget import Budget, tune

MODES = ("hooks", "weights")


class Meow2X(Intervention):
    """Multiply chosen layers' MLP outputs, or chosen neurons, by `scale`.

    Neuron form: a_j becomes scale * a_j at `mlp.hook_post`. Layer form: what the MLP adds to the residual stream
    becomes scale times itself at `hook_mlp_out`. Scaling a neuron is scaling a row of W_out, and scaling a layer is
    scaling W_out and b_out, so `mode="weights"` does the same at no cost at inference. Where a norm follows the MLP
    (gemma2, gemma3, olmo2) it would undo a scaled W_out; there the norm's own weight is scaled.

    Args:
        layers: layers to scale.
        neurons: (layer, neuron) pairs to scale.
        scale: from 0 (removed) to 1 (left alone).
        mode: "hooks" places hooks on both module trees of the model; "weights" edits the weights.

    Raises:
        ToxlocError: neither or empty parts, a scale outside [0, 1], an unknown mode.

    Source: "Where Does Toxicity Live?", arXiv:2605.27997.

    Example:
        >>> m = Meow2X(neurons=[(0, 5), (3, 17)], scale=0.5)
        >>> with m.applied(lm):                 # doctest: +SKIP
        ...     toxloc.evaluate(lm, prompts)
    """

    kind: ClassVar[str] = "meow2x"
    bakeable: ClassVar[bool] = True

    def __init__(self, *, layers: Sequence[int] = (), neurons: Sequence[tuple[int, int]] = (), scale: float = 0.5,
                 mode: str = "hooks"):
        super().__init__()
        if not layers and not neurons:
            raise ToxlocError("Meow2X needs layers= or neurons= to scale; neither was given.")
        if not 0 <= scale <= 1:
            raise ToxlocError(f"A scale from 0 (remove) to 1 (leave alone) is needed, not {scale}.")
        if mode not in MODES:
            raise ToxlocError(f"Unknown mode {mode!r}; choose one of {', '.join(MODES)}.")
        self.layers = sorted({int(layer) for layer in layers})
        self.neurons = list(dict.fromkeys((int(layer), int(j)) for layer, j in neurons))
        self.scale, self.mode = float(scale), mode

    def __repr__(self) -> str:
        parts = f"layers={self.layers}" if self.layers else f"{len(self.neurons)} neurons"
        return f"Meow2X({parts}, scale={self.scale:g}, mode={self.mode!r})"

    @classmethod
    def fit(cls, lm: LoadedModel, pairs: ContrastSet, *, budget: float | Budget = 0.02, scale: float = 0.5,
            score: str = "attribution", per_cost: bool = True, mode: str = "hooks",
            neutral: NeutralText | None = None, statistics: ContrastStatistics | None = None) -> "Meow2X":
        """Scale as many neurons, best first, as the budget allows.

        Neurons with a positive score are ranked by it or, with `per_cost`, by score / sqrt(C_jj w_jᵀ S w_j): the
        denominator is the second-order change of the model's predictions on neutral text when neuron j (row w_j of
        W_out) is scaled, so that no costly neuron spends the budget alone.

        Args:
            lm: the model.
            pairs: the contrast set to score neurons on.
            budget: what it may cost on `neutral.tune`; a number is the relative rise of perplexity.
            scale: what chosen neurons are multiplied by.
            score: name of a localization score.
            per_cost: rank by score per square root of cost.
            mode: see the class.
            neutral: everyday text; by default the built-in one.
            statistics: what `collect_contrast(..., curvature=True)` found before.

        Raises:
            ToxlocError: an unknown score, a budget that is not positive, no neuron with a positive score.
        """
        if score not in SCORES:
            raise ToxlocError(f"Unknown score {score!r}; choose from {', '.join(SCORES)}.")
        limits = Budget.of(budget)
        neutral = neutral or load_neutral()
        if statistics is None:
            needs = SCORES[score].needs
            statistics = collect_contrast(lm, pairs, curvature=True, reliance="reliance" in needs,
                                          peaks="peaks" in needs, more_neutral=neutral.fit)
        values = SCORES[score].formula(lm, statistics, []).neurons
        worth = values / np.sqrt(_costs(lm, statistics)) if per_cost else values
        worth = np.where(values > 0, worth, -np.inf)
        order = [divmod(int(i), lm.d_mlp) for i in np.argsort(-worth, axis=None, kind="stable")[: (values > 0).sum()]]
        if not order:
            raise ToxlocError(f"No neuron has a positive {score}; there is nothing to turn down.")

        def first(count: float) -> "Meow2X":
            return cls(neurons=order[: max(1, math.floor(count))], scale=scale, mode=mode)

        meow = tune(lm, first, limits, neutral, first=max(1.0, len(order) / 20), limit=len(order))
        meow.note_fit(lm, {"score": score, "per_cost": per_cost, "n_neurons": len(meow.neurons)})
        return meow

    @property
    def in_weights(self) -> bool:
        """Whether its mode is "weights"."""
        return self.mode == "weights"

    def baked(self) -> "Meow2X":
        """Return the same with `mode="weights"`."""
        baked = Meow2X(layers=self.layers, neurons=self.neurons, scale=self.scale, mode="weights")
        baked.fitted_on, baked.record = self.fitted_on, self.record
        return baked

    def config(self) -> dict[str, Any]:
        """Return the settings; which neurons they are is in the tensors."""
        return {"layers": self.layers, "n_neurons": len(self.neurons), "scale": self.scale, "mode": self.mode}

    def check(self, lm: LoadedModel) -> None:
        """Raise ToxlocError if a layer or neuron is not in the model."""
        for layer in [*self.layers, *(layer for layer, _ in self.neurons)]:
            if not 0 <= layer < lm.n_layers:
                raise ToxlocError(f"Layer {layer} was asked for; {lm.name} has layers 0 to {lm.n_layers - 1}.")
        for layer, j in self.neurons:
            if not 0 <= j < lm.d_mlp:
                raise ToxlocError(f"Neuron {j} of layer {layer} was asked for; {lm.name} has neurons 0 to "
                                  f"{lm.d_mlp - 1}.")

    def _install(self, lm: LoadedModel, stack: ExitStack) -> None:
        factors = self._neuron_factors(lm)
        if self.mode == "weights":
            for layer, factor in factors.items():
                W = lm.W_out(layer)
                overwrite(W, W.float() * factor[:, None], stack)
            for layer in self.layers:
                self._bake_layer(lm, layer, stack)
            return
        for layer, factor in factors.items():
            change(lm, neurons_of(lm, layer), factor.mul, stack)
        for layer in self.layers:
            change(lm, mlp_write(lm, layer), lambda m: m * self.scale, stack)

    def _bake_layer(self, lm: LoadedModel, layer: int, stack: ExitStack) -> None:
        family = architecture(lm.hf.config.model_type)
        if family.post_norm:
            norm = lm.contribution(layer).get_parameter("weight")
            overwrite(norm, self.scale * (family.norm_offset + norm.float()) - family.norm_offset, stack)
            return
        for weight in (lm.W_out(layer), lm.b_out(layer)):
            if weight is not None:
                overwrite(weight, weight.float() * self.scale, stack)

    def _neuron_factors(self, lm: LoadedModel) -> dict[int, Tensor]:
        factors: dict[int, Tensor] = {}
        for layer, j in self.neurons:
            factors.setdefault(layer, torch.ones(lm.d_mlp, device=lm.device))[j] = self.scale
        return factors

    def _tensors(self) -> dict[str, Tensor]:
        return {"neurons": torch.tensor(self.neurons, dtype=torch.int64).reshape(-1, 2)}

    @classmethod
    def _restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> "Meow2X":
        neurons = [(int(layer), int(j)) for layer, j in tensors["neurons"].tolist()]
        return cls(layers=config["layers"], neurons=neurons, scale=config["scale"], mode=config["mode"])


def _costs(lm: LoadedModel, statistics: ContrastStatistics) -> np.ndarray:
    """C_jj w_jᵀ S w_j for every neuron: [n_layers, d_mlp], bounded away from 0."""
    if not statistics.C:
        raise ToxlocError("Ranking per cost needs the curvature; gather it with collect_contrast(curvature=True).")
    rows = []
    for layer in range(lm.n_layers):
        W = lm.W_out(layer).float()
        cost = statistics.C[layer].diagonal() * ((W @ statistics.S[layer]) * W).sum(1)
        rows.append(cost.double().cpu().numpy())
    costs: np.ndarray = np.stack(rows)
    bounded: np.ndarray = np.maximum(costs, 1e-9 * costs.mean())
    return bounded
