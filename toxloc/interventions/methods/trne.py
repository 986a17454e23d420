"""TRNE: norm-bounded rank-one writes into W_out, in closed form, without gradient descent."""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import ToxlocError
from ...evaluation.cost.perplexity import mean_nll
from ...localization.linalg import steepest, steepest_at_cost, steepest_beyond_noise
from ...localization.statistics import FISHERS, ContrastStatistics, collect_contrast
from ...models.loaded import AnyModel, LoadedModel
from ...texts.contrast import ContrastSet
from ...texts.loading import load_neutral
from ...texts.neutral import NeutralText
from ..base import Intervention, check_layers, overwrite
from ..budget import Budget
from ..tuning import tune

METRICS = ("kl", "frobenius")
DEFAULT_BUDGET = 0.01
RIDGES = (0.1, 0.3, 1.0, 3.0)  # what ridge="auto" chooses from
HELD_OUT = 0.2  # of the contrast set, for that choice
MEMORY = 4 << 30  # bytes of C that are held at once


@dataclass(frozen=True)
class RankOne:
    """A change u vᵀ of one layer's W_out."""

    layer: int
    u: Float[Tensor, " d_mlp"]
    v: Float[Tensor, " d_model"]

    def scaled(self, strength: float) -> "RankOne":
        """Return strength * u vᵀ."""
        return RankOne(self.layer, strength * self.u, self.v)


class TRNE(Intervention):
    """Add to W_out the rank-one matrix that raises NLL_T - NLL_N fastest for a bounded cost.

    With G the gradient of that contrast by W_out, and per layer:

    * `metric="frobenius"`: cost ||ΔW||_F. ΔW = ε ||W_out||_F u₁ v₁ᵀ, (u₁, v₁) the leading singular pair of G; k
      layers share the norm, ε / sqrt(k) each.
    * `metric="kl"`: cost tr(S ΔWᵀ C ΔW), the second-order change of the model's predictions on neutral text. With
      C̃, S̃ the ridged C and S and (σ₁, u₁, v₁) the leading singular triple of C̃^(-1/2) G S̃^(-1/2),
      ΔW = s σ₁ (C̃^(-1/2) u₁)(S̃^(-1/2) v₁)ᵀ, one strength s for all layers. σ₁ is the layer's editability: gain per
      unit of cost, comparable across depth.

    Make one with `TRNE.fit`; the constructor takes ready rank-one changes, of one layer also several.

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
        return f"TRNE({self.settings.get('metric', 'custom')}, layers={sorted({edit.layer for edit in self.edits})})"

    @classmethod
    def fit(cls, lm: AnyModel, pairs: ContrastSet, *, metric: str = "kl", budget: float | Budget | None = None,
            norm: float | None = None, layers: int | Sequence[int] | None = None,
            emphasis: Mapping[int, float] | None = None, ridge: float | str = 1.0, shrink: bool = False,
            fisher: str = "empirical", rounds: int = 1, neutral: NeutralText | None = None,
            statistics: ContrastStatistics | None = None, memory: int = MEMORY, seed: int = 0) -> "TRNE":
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
            emphasis: factors on the strength of single layers; to second order, the same for all is best.
            ridge: multiple of the mean eigenvalue added to C and S (kl). "auto" holds a fifth of the contrast set out
                and takes, of .1, .3, 1 and 3, the one whose edit raises the contrast there most within the budget.
            shrink: take G from each half of the contrast set, and σ₁ and the direction from what the halves agree on
                (kl), so that a layer whose gradient is mostly noise gets little. One more pass over the set.
            fisher: "empirical" or "sampled", what S is made of (kl; see `toxloc.localization.statistics.collect`).
            rounds: with 2 or more, half (a third, ...) of the budget is spent, G, C and S are computed again on the
                edited model, and a further rank-one change is added: a few large steps of natural gradient descent
                instead of one closed form.
            neutral: everyday text; its part `fit` joins C and S. By default the built-in one.
            statistics: what `collect_contrast(..., curvature=True)` found before, for the first round.
            memory: bytes that the C of several layers may take at once; if all do not fit, layers are taken in turn,
                with a pass over the texts for each group of them. The result is the same.
            seed: of the division of the contrast set that `ridge="auto"` and `shrink` make.

        Raises:
            ToxlocError: an unknown metric or fisher, both budget and norm, a bad layer, options that do not go
                together, or no strength within the budget.

        Example:
            >>> e = TRNE.fit(lm, toxloc.load_contrast(), budget=0.01)     # doctest: +SKIP
            >>> with e.applied(lm): ...                                    # doctest: +SKIP
        """
        lm = LoadedModel.of(lm)
        cls.check_settings(metric=metric, budget=budget, norm=norm, ridge=ridge, shrink=shrink, fisher=fisher,
                           rounds=rounds)
        how = _Options(metric, layers, dict(emphasis or {}), ridge, shrink, fisher, memory, seed)
        how.check(lm, statistics)
        limits = None if norm is not None else Budget.of(DEFAULT_BUDGET if budget is None else budget)
        if neutral is None and (statistics is None or limits is not None):
            neutral = load_neutral()
        if ridge == "auto":
            return cls._with_best_ridge(lm, pairs, how, limits, norm, rounds, neutral)
        edit: TRNE | None = None
        for nth in range(rounds):
            with edit.applied(lm) if edit else nullcontext():
                found = _unit_edits(lm, pairs, how, neutral, statistics if nth == 0 else None)
            edit = cls._strong(lm, edit, found, how, limits and limits.scaled((nth + 1) / rounds), norm, neutral)
        assert edit is not None
        edit.note_fit(lm, {}, pairs, neutral)
        return edit

    @staticmethod
    def shares_statistics(*, ridge: float | str = 1.0, shrink: bool = False, fisher: str = "empirical",
                          **_: Any) -> bool:
        """Whether `fit` with these settings works on statistics gathered before, and not on some of its own."""
        return ridge != "auto" and not shrink and fisher == "empirical"

    @staticmethod
    def check_settings(*, metric: str = "kl", budget: float | Budget | None = None, norm: float | None = None,
                       ridge: float | str = 1.0, shrink: bool = False, fisher: str = "empirical", rounds: int = 1,
                       **_: Any) -> None:
        """Raise ToxlocError at settings of `fit` that no model can be fitted with."""
        if metric not in METRICS:
            raise ToxlocError(f"Unknown metric {metric!r}; choose one of {', '.join(METRICS)}.")
        if fisher not in FISHERS:
            raise ToxlocError(f"Unknown fisher {fisher!r}; choose one of {', '.join(FISHERS)}.")
        automatic = ridge == "auto"
        if not automatic and (isinstance(ridge, str) or ridge <= 0):
            raise ToxlocError(f'ridge must be positive, or "auto", not {ridge!r}.')
        if metric == "frobenius" and (automatic or shrink):
            raise ToxlocError('ridge="auto" and shrink=True are for metric="kl"; the frobenius form has no curvature.')
        if budget is not None and norm is not None:
            raise ToxlocError("Give either budget= or norm=, not both: each sets the strength.")
        if norm is not None and norm <= 0:
            raise ToxlocError(f"norm is the relative size of the edit and must be positive, not {norm}.")
        if rounds < 1 or (rounds > 1 and norm is not None):
            raise ToxlocError(f"rounds={rounds}: give 1 or more, and with more than one a budget instead of norm=.")

    @classmethod
    def _strong(cls, lm: LoadedModel, before: "TRNE | None", found: "_Unit", how: "_Options", limits: Budget | None,
                norm: float | None, neutral: NeutralText | None) -> "TRNE":
        """Add the unit changes to what there is already, as strongly as asked for."""
        earlier = before.edits if before else []

        def scaled(strength: float) -> "TRNE":
            edit = cls([*earlier, *(one.scaled(strength) for one in found.edits)], how.to_dict())
            by_layer = edit._relative_norms(lm)
            total = sum(value**2 for value in found.editability.values())
            edit.note_fit(lm, {
                "layers": sorted(by_layer), "strength": strength, "rounds": len(edit.edits) // len(found.edits),
                "norm": math.hypot(*by_layer.values()),
                "editability": {str(layer): value for layer, value in found.editability.items()},
                "share_of_cost": {str(layer): value**2 / total for layer, value in found.editability.items()},
                "relative_norm": {str(layer): value for layer, value in by_layer.items()},
            })
            return edit

        relative = math.hypot(*cls(found.edits)._relative_norms(lm).values())
        if norm is not None:
            return scaled(norm / relative)
        assert limits is not None
        guess = 0.02 / relative
        if found.editability:
            spend = 2 * (limits.perplexity or limits.kl or 0.0)
            guess = math.sqrt(spend / sum(value**2 for value in found.editability.values()))
        return tune(lm, scaled, limits, neutral, guess)

    @classmethod
    def _with_best_ridge(cls, lm: LoadedModel, pairs: ContrastSet, how: "_Options", limits: Budget | None,
                         norm: float | None, rounds: int, neutral: NeutralText | None) -> "TRNE":
        fitted, held_out = pairs.split(1 - HELD_OUT, how.seed)
        statistics = None
        if not how.shrink and lm.n_layers <= how.layers_at_once(lm):
            statistics = collect_contrast(lm, fitted, curvature=True, moments=False, fisher=how.fisher,
                                          more_neutral=neutral.fit if neutral else ())
        before, tried = _contrast(lm, held_out), []
        for ridge in RIDGES:
            edit = cls.fit(lm, fitted, metric=how.metric, budget=limits, norm=norm, layers=how.layers,
                           emphasis=how.emphasis, ridge=ridge, shrink=how.shrink, fisher=how.fisher, rounds=rounds,
                           neutral=neutral, statistics=statistics, memory=how.memory, seed=how.seed)
            with edit.applied(lm):
                tried.append((_contrast(lm, held_out) - before, ridge, edit))
        best = max(tried, key=lambda one: one[0])[2]
        best.note_fit(lm, {"ridges": {str(ridge): rise for rise, ridge, _ in tried}}, pairs)
        return best

    @property
    def in_weights(self) -> bool:
        """Always: an edit of W_out."""
        return True

    def config(self) -> dict[str, Any]:
        """Return the settings of the fit; the vectors are in the tensors."""
        return dict(self.settings)

    def check(self, lm: LoadedModel) -> None:
        """Raise ToxlocError if a layer is not in the model or a vector has another length."""
        check_layers(lm, (edit.layer for edit in self.edits))
        for edit in self.edits:
            if (len(edit.u), len(edit.v)) != (lm.d_mlp, lm.d_model):
                raise ToxlocError(f"This TRNE edit is for d_mlp={len(edit.u)}, d_model={len(edit.v)}; {lm.name} has "
                                  f"d_mlp={lm.d_mlp}, d_model={lm.d_model}. Fit it on this model.")

    def by_layer(self) -> dict[int, tuple[Float[Tensor, "r d_mlp"], Float[Tensor, "r d_model"]]]:
        """Return each layer's vectors u and v, stacked: its ΔW is uᵀ v."""
        layers = sorted({edit.layer for edit in self.edits})
        mine = {layer: [edit for edit in self.edits if edit.layer == layer] for layer in layers}
        return {layer: (torch.stack([edit.u for edit in edits]), torch.stack([edit.v for edit in edits]))
                for layer, edits in mine.items()}

    def _install(self, lm: LoadedModel, stack: ExitStack) -> None:
        for layer, (u, v) in self.by_layer().items():
            W = lm.W_out(layer)
            overwrite(W, torch.addmm(W.float(), u.to(W.device).float().T, v.to(W.device).float()), stack)

    def _relative_norms(self, lm: LoadedModel) -> dict[int, float]:
        """||ΔW||_F / ||W_out||_F by layer, ||uᵀ v||_F from the small Gram matrices."""
        return {layer: float(((u @ u.T) * (v @ v.T)).sum().clamp_min(0).sqrt() / lm.W_out(layer).float().norm())
                for layer, (u, v) in self.by_layer().items()}

    def _tensors(self) -> dict[str, Tensor]:
        return {"layer": torch.tensor([edit.layer for edit in self.edits]),
                "u": torch.stack([edit.u for edit in self.edits]), "v": torch.stack([edit.v for edit in self.edits])}

    @classmethod
    def _restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> "TRNE":
        return cls([RankOne(int(layer), u, v) for layer, u, v in
                    zip(tensors["layer"], tensors["u"], tensors["v"], strict=True)], config)


@dataclass(frozen=True)
class _Options:
    """How to find the unit changes; see `TRNE.fit`."""

    metric: str
    layers: int | Sequence[int] | None
    emphasis: dict[int, float]
    ridge: float | str
    shrink: bool
    fisher: str
    memory: int
    seed: int

    def check(self, lm: LoadedModel, statistics: ContrastStatistics | None) -> None:
        automatic = self.ridge == "auto"
        if statistics is not None and (automatic or self.shrink):
            raise ToxlocError('ridge="auto" and shrink=True divide the contrast set and gather their own statistics; '
                              "leave statistics= out.")
        _check_layers(lm, self.layers)
        if self.emphasis:
            check_layers(lm, self.emphasis)
            if min(self.emphasis.values()) < 0:
                raise ToxlocError(f"emphasis needs factors of 0 or more, not {self.emphasis}.")

    def layers_at_once(self, lm: LoadedModel) -> int:
        """How many layers' C fit the memory, at least one."""
        return max(1, self.memory // (4 * lm.d_mlp**2))

    def to_dict(self) -> dict[str, Any]:
        curved = self.metric == "kl"
        return {"metric": self.metric, "ridge": self.ridge if curved else None, "shrink": self.shrink,
                "fisher": self.fisher if curved else None, "seed": self.seed,
                "emphasis": {str(layer): factor for layer, factor in self.emphasis.items()}}


@dataclass(frozen=True)
class _Unit:
    """Changes to be multiplied by one strength, and the layers' editability (empty for frobenius)."""

    edits: list[RankOne]
    editability: dict[int, float]


def _unit_edits(lm: LoadedModel, pairs: ContrastSet, how: _Options, neutral: NeutralText | None,
                statistics: ContrastStatistics | None) -> _Unit:
    if how.metric == "kl":
        found = _kl_edits(lm, pairs, how, neutral, statistics)
    else:
        found = _frobenius_edits(lm, statistics or collect_contrast(lm, pairs, moments=False), how.layers)
    return _Unit([edit.scaled(how.emphasis.get(edit.layer, 1.0)) for edit in found.edits],
                 {layer: how.emphasis.get(layer, 1.0) * sigma for layer, sigma in found.editability.items()})


def _frobenius_edits(lm: LoadedModel, s: ContrastStatistics, layers: int | Sequence[int] | None) -> _Unit:
    """Per layer ||W_out||_F / sqrt(k) u₁ v₁ᵀ, to be multiplied by ε."""
    chosen = _choose([float(s.G(layer).norm()) for layer in range(lm.n_layers)], 1 if layers is None else layers)
    edits = []
    for layer in chosen:
        _, u, v = steepest(s.G(layer))
        share = lm.W_out(layer).float().norm() / math.sqrt(len(chosen))
        edits.append(RankOne(layer, (share * u).float(), v.float()))
    return _Unit(edits, {})


def _kl_edits(lm: LoadedModel, pairs: ContrastSet, how: _Options, neutral: NeutralText | None,
              statistics: ContrastStatistics | None) -> _Unit:
    """Per layer σ₁ (C̃^(-1/2) u₁)(S̃^(-1/2) v₁)ᵀ, to be multiplied by s, and the layers' editability σ₁."""
    if statistics is not None and not statistics.C:
        raise ToxlocError('metric="kl" needs the curvature; gather it with collect_contrast(curvature=True).')
    halves = [collect_contrast(lm, half, moments=False) for half in pairs.split(0.5, how.seed)] if how.shrink else None
    assert not isinstance(how.ridge, str)
    edits, editability = [], []
    at_once = lm.n_layers if statistics is not None else how.layers_at_once(lm)
    for start in range(0, lm.n_layers, at_once):
        group = range(start, min(start + at_once, lm.n_layers))
        s = statistics or collect_contrast(lm, pairs, curvature=True, layers=group, moments=False, fisher=how.fisher,
                                           more_neutral=neutral.fit if neutral else ())
        for layer in group:
            if halves is None:
                sigma, u, v = steepest_at_cost(s.G(layer), s.C[layer], s.S[layer], how.ridge)
            else:
                gradients = halves[0].G(layer), halves[1].G(layer)
                sigma, u, v = steepest_beyond_noise(gradients, s.C[layer], s.S[layer], how.ridge)
            edits.append(RankOne(layer, (sigma * u).float(), v.float()))
            editability.append(sigma)
    chosen = _choose(editability, lm.n_layers if how.layers is None else how.layers)
    return _Unit([edits[layer] for layer in chosen], {layer: editability[layer] for layer in chosen})


def _contrast(lm: LoadedModel, pairs: ContrastSet) -> float:
    """NLL_T - NLL_N, each the mean per token."""
    return mean_nll(lm, pairs.toxic, 128) - mean_nll(lm, pairs.neutral, 128)


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
        return
    if not layers:
        raise ToxlocError("layers=[] leaves nothing to edit; give layers, how many, or leave it out.")
    check_layers(lm, layers)
