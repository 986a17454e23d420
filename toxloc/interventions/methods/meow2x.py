"""Meow2X: scale the located parts, with hooks at inference or the same baked into the weights."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ...errors import ToxlocError
from ...localization.scores import SCORES
from ...localization.statistics import ContrastStatistics, collect_contrast
from ...models.activations import change, mlp_write
from ...models.activations import neurons as neurons_of
from ...models.architectures import architecture
from ...models.loaded import AnyModel, LoadedModel
from ...texts.contrast import ContrastSet
from ...texts.loading import load_neutral
from ...texts.neutral import NeutralText
from ..base import MODES, Intervention, check_layers, overwrite
from ..budget import Budget
from ..tuning import tune

PARTS = ("neurons", "layers")
SCALES = ("graded", "auto")
AUTO_SCALES = (0.0, 0.25, 0.5, 0.75)


class Meow2X(Intervention):
    """Multiply chosen layers' MLP outputs, or chosen neurons, by `scale`.

    Neuron form: a_j becomes scale * a_j at `mlp.hook_post`. Layer form: what the MLP adds to the residual stream
    becomes scale times itself at `hook_mlp_out`. Scaling a neuron is scaling a row of W_out, and scaling a layer is
    scaling W_out and b_out, so `mode="weights"` does the same at no cost at inference. Where a norm follows the MLP
    (gemma2, gemma3, olmo2) it would undo a scaled W_out; there the norm's own weight is scaled.

    Args:
        layers: layers to scale.
        neurons: (layer, neuron) pairs to scale.
        scale: from 0 (removed) to 1 (left alone); for neurons also one number for each.
        mode: "hooks" places hooks on both module trees of the model; "weights" edits the weights.

    Raises:
        ToxlocError: neither or empty parts, a scale outside [0, 1], scales that are not one for each neuron, an unknown
            mode.

    Source: "Where Does Toxicity Live?", arXiv:2605.27997.

    Example:
        >>> m = Meow2X(neurons=[(0, 5), (3, 17)], scale=0.5)
        >>> with m.applied(lm):                 # doctest: +SKIP
        ...     toxloc.evaluate(lm, prompts)
    """

    kind: ClassVar[str] = "meow2x"
    bakeable: ClassVar[bool] = True

    def __init__(self, *, layers: Sequence[int] = (), neurons: Sequence[tuple[int, int]] = (),
                 scale: float | Sequence[float] = 0.5, mode: str = "hooks"):
        super().__init__()
        if not layers and not neurons:
            raise ToxlocError("Meow2X needs layers= or neurons= to scale; neither was given.")
        scales = [float(scale)] if isinstance(scale, int | float) else [float(one) for one in scale]
        if not isinstance(scale, int | float) and (layers or len(scales) != len(neurons)):
            raise ToxlocError(f"{len(scales)} scales were given for {len(neurons)} neurons and {len(layers)} layers; "
                              "give one for each neuron and none for layers, or a single number.")
        if not all(0 <= one <= 1 for one in scales):
            raise ToxlocError(f"A scale from 0 (remove) to 1 (leave alone) is needed, not "
                              f"{next(one for one in scales if not 0 <= one <= 1)}.")
        if mode not in MODES:
            raise ToxlocError(f"Unknown mode {mode!r}; choose one of {', '.join(MODES)}.")
        self.layers = sorted({int(layer) for layer in layers})
        each = scales * len(neurons) if len(scales) == 1 else scales
        self.neurons = {(int(layer), int(j)): one for (layer, j), one in zip(neurons, each, strict=True)}
        self.scale: float | None = scales[0] if len(set(scales)) == 1 else None
        self.mode = mode

    def __repr__(self) -> str:
        parts = [f"layers={self.layers}"] if self.layers else []
        parts += [f"{len(self.neurons)} neurons"] if self.neurons else []
        return f"Meow2X({', '.join(parts)}, scale={'graded' if self.scale is None else self.scale}, mode={self.mode!r})"

    @classmethod
    def fit(cls, lm: AnyModel, pairs: ContrastSet, *, parts: str = "neurons", budget: float | Budget = 0.02,
            scale: float | str = 0.5, score: str = "attribution", per_cost: bool = True, k: int = 1,
            mode: str = "hooks", neutral: NeutralText | None = None,
            statistics: ContrastStatistics | None = None) -> "Meow2X":
        """Scale neurons or layers as far as the budget allows; for both, fit twice and make a `Chain`.

        Neurons with a positive score are ranked by it or, with `per_cost`, by score / sqrt(cost) where
        cost = C_jj w_jᵀ S w_j is the second-order change of the model's predictions on neutral text when neuron j (row
        w_j of W_out) is removed, so that no costly neuron spends the budget alone. As many as the budget allows are
        multiplied by `scale`. With `scale="graded"` every neuron with a positive score is scaled, by
        1 - min(1, s score / cost): the largest first-order gain at a given second-order cost, s set by the budget (not
        `per_cost`: 1 - min(1, s score / largest score)).

        Args:
            lm: the model.
            pairs: the contrast set to score on.
            parts: "neurons" or "layers".
            budget: what it may cost on `neutral.tune`; a number is the relative rise of perplexity.
            scale: what chosen neurons are multiplied by; "graded", see above; "auto" takes, of 0, .25, .5 and .75, the
                one that gains most to first order (the sum of (1 - scale) score) within the budget. For layers the
                budget sets it.
            score: name of a localization score.
            per_cost: rank neurons by score per square root of cost.
            k: how many layers, those with the highest positive score, are scaled.
            mode: see the class.
            neutral: everyday text; by default the built-in one.
            statistics: what `collect_contrast(..., curvature=True)` found before.

        Raises:
            ToxlocError: unknown parts, score or scale, a budget that is not positive, no part with a positive score.
        """
        lm = LoadedModel.of(lm)
        cls.check_settings(parts=parts, scale=scale, score=score)
        limits, neutral = Budget.of(budget), neutral or load_neutral()
        if statistics is None:
            needs, priced = SCORES[score].needs, parts == "neurons" and per_cost
            statistics = collect_contrast(lm, pairs, curvature=priced or "curvature" in needs,
                                          reliance="reliance" in needs, peaks="peaks" in needs,
                                          more_neutral=neutral.fit)
        scored = SCORES[score].formula(lm, statistics, [])
        values = scored.neurons if parts == "neurons" else scored.layers
        if not (values > 0).any():
            raise ToxlocError(f"None of the {parts} has a positive {score}; there is nothing to turn down.")
        if parts == "layers":
            best = [int(i) for i in np.argsort(-values, kind="stable")[:k] if values[i] > 0]
            meow = tune(lm, lambda s: cls(layers=best, scale=1 - s, mode=mode), limits, neutral, first=0.1, limit=1.0)
        elif scale == "graded":
            meow = cls._graded(lm, values, values / (_costs(lm, statistics) if per_cost else values.max()), limits,
                               neutral, mode)
        else:
            worth = values / np.sqrt(_costs(lm, statistics)) if per_cost else values
            tried = [cls._counted(lm, values, worth, limits, neutral, one, mode)
                     for one in (AUTO_SCALES if isinstance(scale, str) else (scale,))]
            meow = max(tried, key=lambda one: one._gain(values))
        meow.note_fit(lm, {"parts": parts, "score": score, "per_cost": per_cost, "scale": scale,
                           "n_neurons": len(meow.neurons), "gain": meow._gain(values) if meow.neurons else None},
                      pairs, neutral)
        return meow

    @staticmethod
    def check_settings(*, parts: str = "neurons", scale: float | str = 0.5, score: str = "attribution",
                       **_: Any) -> None:
        """Raise ToxlocError at settings of `fit` that no model can be fitted with."""
        if parts not in PARTS:
            raise ToxlocError(f"Unknown parts {parts!r}; choose one of {', '.join(PARTS)}.")
        if score not in SCORES:
            raise ToxlocError(f"Unknown score {score!r}; choose from {', '.join(SCORES)}.")
        if isinstance(scale, str) and scale not in SCALES:
            raise ToxlocError(f"Unknown scale {scale!r}; give a number from 0 to 1, or one of {', '.join(SCALES)}.")

    @classmethod
    def _counted(cls, lm: LoadedModel, values: np.ndarray, worth: np.ndarray, limits: Budget, neutral: NeutralText,
                 scale: float, mode: str) -> "Meow2X":
        """Scale as many neurons of positive value as the budget allows, those of the greatest worth first."""
        order = np.argsort(-np.where(values > 0, worth, -np.inf), axis=None, kind="stable")[: (values > 0).sum()]
        neurons = [divmod(int(i), lm.d_mlp) for i in order]
        return tune(lm, lambda count: cls(neurons=neurons[: max(1, math.floor(count))], scale=scale, mode=mode), limits,
                    neutral, first=max(1.0, len(neurons) / 20), limit=len(neurons))

    @classmethod
    def _graded(cls, lm: LoadedModel, values: np.ndarray, slope: np.ndarray, limits: Budget, neutral: NeutralText,
                mode: str) -> "Meow2X":
        """Scale every neuron of positive value by 1 - min(1, s slope), s set by the budget."""
        chosen = np.argwhere(values > 0)
        mine = slope[values > 0]
        neurons = [(int(layer), int(j)) for layer, j in chosen]
        return tune(lm, lambda s: cls(neurons=neurons, scale=(1 - np.minimum(1, s * mine)).tolist(), mode=mode), limits,
                    neutral, first=0.2 / float(np.median(mine)), limit=1 / float(mine.min()))

    def _gain(self, values: np.ndarray) -> float:
        """First-order rise of the contrast if `values` are attributions: sum of (1 - scale) value."""
        return float(sum((1 - scale) * values[neuron] for neuron, scale in self.neurons.items()))

    @property
    def in_weights(self) -> bool:
        """Whether its mode is "weights"."""
        return self.mode == "weights"

    def baked(self) -> "Meow2X":
        """Return the same with `mode="weights"`."""
        baked = Meow2X._restore(self.config() | {"mode": "weights"}, self._tensors())
        baked.fitted_on, baked.record = self.fitted_on, self.record
        return baked

    def config(self) -> dict[str, Any]:
        """Return the settings; which neurons they are, and their scales, are in the tensors."""
        return {"layers": self.layers, "n_neurons": len(self.neurons), "scale": self.scale, "mode": self.mode}

    def check(self, lm: LoadedModel) -> None:
        """Raise ToxlocError if a layer or neuron is not in the model."""
        check_layers(lm, [*self.layers, *(layer for layer, _ in self.neurons)])
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
            change(lm, mlp_write(lm, layer), lambda m: m * self._layer_scale, stack)

    @property
    def _layer_scale(self) -> float:
        assert self.scale is not None  # layers come with one scale
        return self.scale

    def _bake_layer(self, lm: LoadedModel, layer: int, stack: ExitStack) -> None:
        if lm.has_post_norm:
            family = architecture(lm.model_type)
            norm = lm.contribution(layer).get_parameter("weight")
            overwrite(norm, self._layer_scale * (family.norm_offset + norm.float()) - family.norm_offset, stack)
            return
        for weight in (lm.W_out(layer), lm.b_out(layer)):
            if weight is not None:
                overwrite(weight, weight.float() * self._layer_scale, stack)

    def _neuron_factors(self, lm: LoadedModel) -> dict[int, Tensor]:
        factors: dict[int, Tensor] = {}
        for (layer, j), scale in self.neurons.items():
            factors.setdefault(layer, torch.ones(lm.d_mlp, device=lm.device_of(layer)))[j] = scale
        return factors

    def _tensors(self) -> dict[str, Tensor]:
        return {"neurons": torch.tensor(list(self.neurons), dtype=torch.int64).reshape(-1, 2),
                "scales": torch.tensor(list(self.neurons.values()), dtype=torch.float64)}

    @classmethod
    def _restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> "Meow2X":
        neurons = [(int(layer), int(j)) for layer, j in tensors["neurons"].tolist()]
        scale = tensors["scales"].tolist() if config["scale"] is None else config["scale"]
        return cls(layers=config["layers"], neurons=neurons, scale=scale, mode=config["mode"])


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
