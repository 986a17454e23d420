"""TRNE: one norm-bounded rank-one write into W_out per layer, in closed form, without gradient descent."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ToxlocError
from ..linalg import steepest, steepest_at_cost
from ..model import LoadedModel
from ..prompts import ContrastSet, NeutralText, load_neutral
from ..scores import gradient_norm
from ..statistics import ContrastStatistics, collect_contrast
from .base import Intervention, overwrite
from .budget import Budget, tune

METRICS = ("kl", "frobenius")
DEFAULT_BUDGET = 0.01


@dataclass(frozen=True)
class RankOne:
    """The change u vᵀ of one layer's W_out."""

    layer: int
    u: Float[Tensor, " d_mlp"]
    v: Float[Tensor, " d_model"]

    def scaled(self, strength: float) -> "RankOne":
        """Return strength * u vᵀ."""
        return RankOne(self.layer, strength * self.u, self.v)

    @property
    def norm(self) -> float:
        """Frobenius norm of u vᵀ."""
        return float(self.u.norm() * self.v.norm())


class TRNE(Intervention):
    """Add to W_out the rank-one matrix that raises NLL_T - NLL_N fastest for a bounded cost.

    With G the gradient of that contrast by W_out, and per layer:

    * `metric="frobenius"`: cost ||ΔW||_F. ΔW = ε ||W_out||_F u₁ v₁ᵀ, (u₁, v₁) the leading singular pair of G; k
      layers share the norm, ε / sqrt(k) each.
    * `metric="kl"`: cost tr(S ΔWᵀ C ΔW), the second-order change of the model's predictions on neutral text. With
      C̃, S̃ the ridged C and S and (σ₁, u₁, v₁) the leading singular triple of C̃^(-1/2) G S̃^(-1/2),
      ΔW = s σ₁ (C̃^(-1/2) u₁)(S̃^(-1/2) v₁)ᵀ, one strength s for all layers. σ₁ is the layer's editability: gain per
      unit of cost, comparable across depth.

    Make one with `TRNE.fit`; the constructor takes ready rank-one changes.

    Source: "Where Does Toxicity Live?", arXiv:2605.27997 (frobenius); the curvature is that of Martens and Grosse
    2015, arXiv:1503.05671.
    """

    kind: ClassVar[str] = "trne"
    bakeable: ClassVar[bool] = True

    def __init__(self, edits: Sequence[RankOne], settings: dict[str, Any] | None = None):
        super().__init__()
        if not edits:
            raise ToxlocError("TRNE needs at least one rank-one change.")
        self.edits = list(edits)
        self.settings = settings or {}

    def __repr__(self) -> str:
        return f"TRNE({self.settings.get('metric', 'custom')}, layers={[edit.layer for edit in self.edits]})"

    @classmethod
    def fit(cls, lm: LoadedModel, pairs: ContrastSet, *, metric: str = "kl", budget: float | Budget | None = None,
            norm: float | None = None, layers: int | Sequence[int] | None = None, ridge: float = 1.0,
            neutral: NeutralText | None = None, statistics: ContrastStatistics | None = None) -> "TRNE":
        """Find the edit and its strength.

        Args:
            lm: the model; unchanged when this returns.
            pairs: the contrast set that gives G, and whose neutral side gives C and S.
            metric: "kl" or "frobenius", see the class.
            budget: the strength is the largest that costs no more than this on `neutral.tune`, text that no statistic
                has seen; a number is the relative rise of perplexity. Default .01 unless `norm` is given.
            norm: instead, the relative norm ε: the squares of ||ΔW||_F / ||W_out||_F over layers add up to ε².
            layers: which layers to edit, or how many: those of the largest gradient norm (frobenius; default 1)
                or editability (kl; default all).
            ridge: multiple of the mean eigenvalue added to C and S (kl).
            neutral: everyday text; its part `fit` joins C and S. By default the built-in one.
            statistics: what `collect_contrast(..., curvature=True)` found before.

        Raises:
            ToxlocError: an unknown metric, both budget and norm, a bad layer, or no strength within the budget.

        Example:
            >>> e = TRNE.fit(lm, toxloc.load_contrast(), budget=0.01)     # doctest: +SKIP
            >>> with e.applied(lm): ...                                    # doctest: +SKIP
        """
        if metric not in METRICS:
            raise ToxlocError(f"Unknown metric {metric!r}; choose one of {', '.join(METRICS)}.")
        if budget is not None and norm is not None:
            raise ToxlocError("Give either budget= or norm=, not both: each sets the strength.")
        if norm is not None and norm <= 0:
            raise ToxlocError(f"norm is the relative size of the edit and must be positive, not {norm}.")
        limits = Budget.of(DEFAULT_BUDGET if budget is None else budget)
        if ridge <= 0:
            raise ToxlocError(f"ridge must be positive, not {ridge}.")
        _check_layers(lm, layers)
        if neutral is None and (statistics is None or norm is None):
            neutral = load_neutral()
        if statistics is None:
            more = neutral.fit if neutral else ()
            statistics = collect_contrast(lm, pairs, curvature=metric == "kl", more_neutral=more)
        if metric == "kl":
            unit, editability = _kl_edits(lm, statistics, layers, ridge)
        else:
            unit, editability = _frobenius_edits(lm, statistics, layers), {}
        settings: dict[str, Any] = {"metric": metric, "ridge": ridge if metric == "kl" else None}
        relative = math.hypot(*(edit.norm / float(lm.W_out(edit.layer).float().norm()) for edit in unit))

        def scaled(strength: float) -> "TRNE":
            edit = cls([one.scaled(strength) for one in unit], settings)
            edit.note_fit(lm, {"layers": [one.layer for one in unit], "strength": strength, "norm": strength * relative,
                               "editability": {str(layer): value for layer, value in editability.items()}})
            return edit

        if norm is not None:
            return scaled(norm / relative)
        guess = math.sqrt(2 * (limits.perplexity or limits.kl or 0.0) / sum(s**2 for s in editability.values())
                          ) if editability else 0.02 / relative
        return tune(lm, scaled, limits, neutral, guess)

    @property
    def in_weights(self) -> bool:
        """Always: an edit of W_out."""
        return True

    def config(self) -> dict[str, Any]:
        """Return the metric and the ridge; the vectors are in the tensors."""
        return dict(self.settings)

    def check(self, lm: LoadedModel) -> None:
        """Raise ToxlocError if a layer is not in the model or a vector has another length."""
        _check_layers(lm, [edit.layer for edit in self.edits])
        for edit in self.edits:
            if (len(edit.u), len(edit.v)) != (lm.d_mlp, lm.d_model):
                raise ToxlocError(f"This TRNE edit is for d_mlp={len(edit.u)}, d_model={len(edit.v)}; {lm.name} has "
                                  f"d_mlp={lm.d_mlp}, d_model={lm.d_model}. Fit it on this model.")

    def _install(self, lm: LoadedModel, stack: ExitStack) -> None:
        for edit in self.edits:
            W = lm.W_out(edit.layer)
            u, v = edit.u.to(lm.device).float(), edit.v.to(lm.device).float()
            overwrite(W, torch.addr(W.float(), u, v), stack)

    def _tensors(self) -> dict[str, Tensor]:
        return {f"{edit.layer}.{part}": getattr(edit, part) for edit in self.edits for part in "uv"}

    @classmethod
    def _restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> "TRNE":
        layers = sorted({int(name.partition(".")[0]) for name in tensors})
        return cls([RankOne(i, tensors[f"{i}.u"], tensors[f"{i}.v"]) for i in layers], config)


def _frobenius_edits(lm: LoadedModel, s: ContrastStatistics, layers: int | Sequence[int] | None) -> list[RankOne]:
    """Per layer ||W_out||_F / sqrt(k) u₁ v₁ᵀ, to be multiplied by ε."""
    chosen = _choose(gradient_norm(lm, s, []).layers.tolist(), 1 if layers is None else layers)
    edits = []
    for layer in chosen:
        _, u, v = steepest(s.G(layer))
        share = lm.W_out(layer).float().norm() / math.sqrt(len(chosen))
        edits.append(RankOne(layer, (share * u).float(), v.float()))
    return edits


def _kl_edits(lm: LoadedModel, s: ContrastStatistics, layers: int | Sequence[int] | None,
              ridge: float) -> tuple[list[RankOne], dict[int, float]]:
    """Per layer σ₁ (C̃^(-1/2) u₁)(S̃^(-1/2) v₁)ᵀ, to be multiplied by s, and the layers' editability σ₁."""
    if not s.C:
        raise ToxlocError('metric="kl" needs the curvature; gather it with collect_contrast(curvature=True).')
    edits, editability = [], []
    for layer in range(lm.n_layers):
        sigma, u, v = steepest_at_cost(s.G(layer), s.C[layer], s.S[layer], ridge)
        edits.append(RankOne(layer, (sigma * u).float(), v.float()))
        editability.append(sigma)
    chosen = _choose(editability, lm.n_layers if layers is None else layers)
    return [edits[layer] for layer in chosen], {layer: editability[layer] for layer in chosen}


def _choose(values: list[float], layers: int | Sequence[int]) -> list[int]:
    """Return the layers given, or the `layers` ones with the largest value, in order of depth."""
    if isinstance(layers, int):
        return sorted(sorted(range(len(values)), key=lambda i: -values[i])[:layers])
    return sorted(set(layers))


def _check_layers(lm: LoadedModel, layers: int | Sequence[int] | None) -> None:
    if layers is None:
        return
    if isinstance(layers, int):
        if not 1 <= layers <= lm.n_layers:
            raise ToxlocError(f"Asked for {layers} layers; {lm.name} has {lm.n_layers}.")
    elif not layers or not all(0 <= layer < lm.n_layers for layer in layers):
        raise ToxlocError(f"Layers {list(layers)} were asked for; {lm.name} has layers 0 to {lm.n_layers - 1}.")
