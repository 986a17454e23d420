"""Meow2X: scale the located units or layers, with hooks at inference or in the weights."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import field_validator

from ...errors import ToxlocError
from ...localization.score_names import ScoreName
from ...models.sites import PARTS, UNITS, AnySite, Site, Unit, sites_of, unit_of
from ...support.settings import option
from ..base import Intervention, check_sites, sites_in_words
from ..settings import MethodSettings, Mode, SitesChoice, check_mode

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float64
    from torch import Tensor

    from ...localization.statistics import ContrastStatistics
    from ...models.loaded import LoadedModel
    from ..budget import Budget
    from ..evidence import Evidence

AUTO_SCALES = (0.0, 0.25, 0.5, 0.75)


class Meow2XSettings(MethodSettings):
    """Settings of Meow2X."""

    parts: Literal["neurons", "layers"] = option(
        "neurons", "what to scale: neurons (single units, including heads) or layers (whole layers)"
    )
    sites: SitesChoice = option(
        "mlp", "where to scale: mlp (MLP outputs and neurons), attention (attention outputs and heads), or all"
    )
    scale: float | Literal["graded", "auto"] = option(
        0.5,
        "factor of the chosen units; graded scales each unit with a positive score down in proportion to its score "
        "per cost; auto chooses the factor 0, .25, .5 or .75 with the largest first-order gain within the budget",
    )
    score: ScoreName = option("attribution", "localization score that ranks the parts")
    per_cost: bool = option(True, "rank units by score / sqrt(cost) instead of by score alone")
    k: int = option(1, "number of layers to scale, those with the highest positive scores", ge=1)
    mode: Mode = option("hooks", "hooks: change the activations with hooks; weights: edit the weights")

    @field_validator("scale")
    @classmethod
    def _in_range(cls, scale: float | str) -> float | str:
        if not isinstance(scale, str) and not 0 <= scale <= 1:
            raise ToxlocError(f"scale must be between 0 (remove) and 1 (no change), not {scale}.")
        return scale


class Meow2X(Intervention):
    """Multiply the outputs of chosen layers, or chosen units, by `scale`.

    For a neuron, a_j becomes scale * a_j at `mlp.hook_post`. For a layer, what the MLP adds to the residual stream is
    multiplied by scale at `hook_mlp_out`. Scaling a neuron equals scaling a row of W_out, and scaling a layer equals
    scaling W_out and b_out, so `mode="weights"` has the same effect at no cost at inference. A norm after the MLP
    (gemma2, gemma3, olmo2) would undo the scaling of W_out, so the weight of that norm is scaled instead.
    Attentions are scaled in the same way: the z of a head, or the whole output of the attention.

    `Meow2X.fit` ranks the units with a positive score by score or, with `per_cost`, by score / sqrt(cost), so that no
    costly unit spends the budget alone. The cost tr(C_uu W_u S W_uᵀ) is the second-order change of the model's
    predictions on neutral text if only that unit is removed (C_jj w_j S w_jᵀ for a neuron with row w_j of W_out). As
    many units as the budget allows are multiplied by `scale`. With `scale="graded"` every unit with a positive score is
    multiplied by 1 - min(1, s score / cost), which has the largest first-order gain at a given second-order cost
    (without `per_cost`, by 1 - min(1, s score / largest score)); the budget sets s. With `parts="layers"` the k layers
    with the highest positive scores are scaled, and the budget sets the scale. To scale both layers and neurons, fit
    twice and make a `Chain`.

    Args:
        layers: layers to scale; a number means the layer's MLP, `Site(3, "attention")` an attention.
        neurons: units to scale, as (layer, neuron) or (site, unit) pairs.
        scale: from 0 (removed) to 1 (no change); for units also a sequence with one scale per unit.
        mode: "hooks" adds hooks to both module trees, `lm.hooked` and `lm.hf`; "weights" edits the weights.

    Raises:
        ToxlocError: neither layers nor neurons, a scale outside [0, 1], a sequence of scales that does not match the
            units, or an unknown mode.

    Source: "Where Does Toxicity Live?", arXiv:2605.27997.

    Example:
        >>> m = Meow2X(neurons=[(0, 5), (3, 17)], scale=0.5)
        >>> with m.applied(lm):                 # doctest: +SKIP
        ...     toxloc.evaluate(lm, prompts)
    """

    kind: ClassVar[str] = "meow2x"
    title: ClassVar[str] = "Meow2X"
    paper: ClassVar[str] = '"Where Does Toxicity Live?", arXiv:2605.27997'
    colour: ClassVar[str | None] = "#3b7dd8"
    bakeable: ClassVar[bool] = True
    Settings = Meow2XSettings

    def __init__(
        self,
        *,
        layers: Sequence[AnySite] = (),
        neurons: Sequence[tuple[AnySite, int]] = (),
        scale: float | Sequence[float] = 0.5,
        mode: str = "hooks",
    ):
        super().__init__()
        if not len(layers) and not len(neurons):
            raise ToxlocError("Meow2X needs layers= or neurons= to scale; neither was given.")
        scales = [float(scale)] if isinstance(scale, int | float) else [float(factor) for factor in scale]
        if not isinstance(scale, int | float) and (layers or len(scales) != len(neurons)):
            raise ToxlocError(
                f"{len(scales)} scales were given for {len(neurons)} neurons and {len(layers)} layers; "
                "give one scale per neuron and no layers, or a single number."
            )
        if not all(0 <= factor <= 1 for factor in scales):
            raise ToxlocError(
                f"scale must be between 0 (remove) and 1 (no change), not "
                f"{next(factor for factor in scales if not 0 <= factor <= 1)}."
            )
        check_mode(mode)
        self.sites = sites_of(layers)
        each = scales * len(neurons) if len(scales) == 1 else scales
        self.units: dict[Unit, float] = {unit_of(unit): factor for unit, factor in zip(neurons, each, strict=True)}
        self.scale: float | None = scales[0] if len(set(scales)) == 1 else None
        self.mode = mode

    @property
    def layers(self) -> list[int]:
        """The layers whose MLP is scaled as a whole."""
        return [site.layer for site in self.sites if site.part == "mlp"]

    @property
    def neurons(self) -> dict[tuple[int, int], float]:
        """Scale of every scaled neuron, by (layer, neuron)."""
        return {(site.layer, unit): scale for (site, unit), scale in self.units.items() if site.part == "mlp"}

    @property
    def heads(self) -> dict[tuple[int, int], float]:
        """Scale of every scaled head, by (layer, head)."""
        return {(site.layer, unit): scale for (site, unit), scale in self.units.items() if site.part == "attention"}

    def __repr__(self) -> str:
        parts = [f"layers={self.layers}"] if self.layers else []
        for part in PARTS[1:]:
            named = [site.layer if site.expert is None else str(site) for site in self.sites if site.part == part]
            parts += [f"{part}s={named}"] if named else []
        parts += [f"{count} {kind}s" for kind, count in self._unit_counts().items()]
        return f"Meow2X({', '.join(parts)}, scale={'graded' if self.scale is None else self.scale}, mode={self.mode!r})"

    @classmethod
    def needs(cls, settings: Meow2XSettings) -> frozenset[str]:
        """Return moments, gradients, what the score needs, and curvature if units are ranked per cost."""
        from ...localization.score_table import SCORES

        priced = settings.parts == "neurons" and settings.per_cost
        return SCORES[settings.score].needs | {"moments", "gradients", *(["curvature"] if priced else [])}

    @classmethod
    def _fit(cls, evidence: Evidence, settings: Meow2XSettings) -> Meow2X:
        import numpy as np

        from ...localization.score_table import SCORES
        from ...localization.scored import joined

        lm, score, budget = evidence.lm, settings.score, settings.budget
        priced, groups, prices, sites = settings.parts == "neurons" and settings.per_cost, [], [], []
        for s in evidence.groups(cls.needs(settings), lm.sites_of_choice(settings.sites)):
            groups.append(SCORES[score].formula(lm, s, []))
            prices += _costs(lm, s) if priced else []
            sites += s.sites
            del s  # before the next group is gathered
        scored = joined(score, groups)
        units = [(site, j) for site in sites for j in range(lm.at(site).n_units)]
        values = np.concatenate(scored.units) if settings.parts == "neurons" else scored.sites
        if not (values > 0).any():
            raise ToxlocError(f"None of the {settings.parts} has a positive {score}; there is nothing to scale down.")

        costs = None
        if priced:
            costs = np.concatenate(prices)
            costs = np.maximum(costs, 1e-9 * costs.mean())
        if settings.parts == "layers":
            best = [sites[i] for i in np.argsort(-values, kind="stable")[: settings.k] if values[i] > 0]
            meow = evidence.strongest(
                lambda s: cls(layers=best, scale=1 - s, mode=settings.mode), budget, first=0.1, limit=1.0
            )
        elif settings.scale == "graded":
            meow = cls._fit_graded(evidence, units, values, costs, budget, settings.mode)
        else:
            scales = AUTO_SCALES if isinstance(settings.scale, str) else (settings.scale,)
            tried = [cls._fit_count(evidence, units, values, costs, budget, factor, settings.mode) for factor in scales]
            meow = max(tried, key=lambda candidate: candidate._gain(units, values))
        meow.note_fit(
            lm,
            {
                "parts": settings.parts,
                "score": score,
                "per_cost": settings.per_cost,
                "scale": settings.scale,
                "n_neurons": len(meow.units),
                "gain": meow._gain(units, values) if meow.units else None,
            },
        )
        return meow

    @classmethod
    def _fit_count(
        cls,
        evidence: Evidence,
        units: list[Unit],
        values: np.ndarray,
        costs: np.ndarray | None,
        budget: Budget,
        scale: float,
        mode: str,
    ) -> Meow2X:
        """Scale as many units with a positive value as the budget allows, in order of decreasing value (per cost)."""
        import numpy as np

        worth = values if costs is None else values / np.sqrt(costs)
        order = np.argsort(-np.where(values > 0, worth, -np.inf), kind="stable")[: (values > 0).sum()]
        chosen = [units[i] for i in order]
        start = len(chosen) / 20
        if costs is not None:  # half of the budget is spent if the changes of the units do not reinforce each other
            start = int(np.searchsorted((1 - scale) ** 2 * costs[order].cumsum(), budget.least))

        def first(count: float) -> Meow2X:
            return cls(neurons=chosen[: int(count)], scale=scale, mode=mode)

        return evidence.strongest(first, budget, first=start, limit=len(chosen), whole=True)

    @classmethod
    def _fit_graded(
        cls,
        evidence: Evidence,
        units: list[Unit],
        values: np.ndarray,
        costs: np.ndarray | None,
        budget: Budget,
        mode: str,
    ) -> Meow2X:
        """Scale every unit with a positive value by 1 - min(1, s value / cost), where the budget sets s."""
        import numpy as np
        from scipy.optimize import brentq

        positive = values > 0
        chosen = [units[i] for i in np.flatnonzero(positive)]
        slopes = values[positive] / (values.max() if costs is None else costs[positive])
        first, limit = 0.2 / float(np.median(slopes)), 1 / float(slopes.min())
        if costs is not None:  # half of the budget is spent if the changes of the units do not reinforce each other
            own = costs[positive]
            spend = min(budget.least, 0.99 * own.sum())
            first = brentq(lambda s: np.minimum(1, s * slopes) ** 2 @ own - spend, 0, limit, xtol=1e-6 / slopes.max())
        return evidence.strongest(
            lambda s: cls(neurons=chosen, scale=(1 - np.minimum(1, s * slopes)).tolist(), mode=mode),
            budget,
            first=first,
            limit=limit,
        )

    def _gain(self, units: list[Unit], values: np.ndarray) -> float:
        """Return the sum of (1 - scale) value: the first-order rise of the contrast if `values` are attributions."""
        value_of = dict(zip(units, values, strict=False))
        return float(sum((1 - scale) * value_of[unit] for unit, scale in self.units.items()))

    @property
    def in_weights(self) -> bool:
        """Whether the mode is "weights"."""
        return self.mode == "weights"

    def baked(self) -> Meow2X:
        """Return the same scaling with `mode="weights"`."""
        return Meow2X._restore(self.config() | {"mode": "weights"}, self._tensors()).with_fit_of(self)

    def where(self) -> str:
        """Describe in words how many neurons and heads it scales in each layer, and which whole layers."""
        places = []
        for kind, count in self._unit_counts().items():
            owners = [site.layer for site, _ in self.units if UNITS[site.part] == kind]
            counts = ", ".join(f"layer {layer}: {owners.count(layer)}" for layer in sorted(set(owners)))
            places.append(f"{count} {kind}{'s' if count > 1 else ''} ({counts})")
        places += [sites_in_words(self.sites)] if self.sites else []
        return " and ".join(places)

    def _unit_counts(self) -> dict[str, int]:
        """Return the number of scaled units by kind: "neuron", "head", "channel"."""
        kinds = [UNITS[site.part] for site, _ in self.units]
        return {kind: kinds.count(kind) for kind in dict.fromkeys(UNITS[part] for part in PARTS) if kind in kinds}

    def config(self) -> dict[str, Any]:
        """Return the settings; the units and their scales are in the tensors."""
        others = [str(site) for site in self.sites if site.part != "mlp"]
        return {
            "layers": self.layers,
            "n_neurons": self._unit_counts().get("neuron", 0),
            "scale": self.scale,
            "mode": self.mode,
            **({"sites": others, "n_heads": len(self.heads)} if others or self.heads else {}),
        }

    def check(self, lm: LoadedModel) -> None:
        """Raise ToxlocError if a layer or unit is not in the model."""
        check_sites(lm, self.sites)
        for site, (units, _) in self._by_site.items():
            lm.check_unit(site, min(units))
            lm.check_unit(site, max(units))

    def _install(self, lm: LoadedModel, stack: ExitStack) -> None:
        from ...models.activations import change, keys_of, written_by
        from ...models.weights import overwrite

        for site, factors in self._unit_factors(lm).items():
            view = lm.at(site)
            if self.mode == "weights":
                overwrite(view.W, view.W.float() * view.per_key(factors)[:, None], stack)
            else:
                change(lm, keys_of(lm, site), view.per_key(factors).mul, stack)
        for site in self.sites:
            if self.mode == "weights":
                self._bake_layer(lm, site, stack)
            else:
                change(lm, written_by(lm, site), lambda m: m * self._layer_scale, stack)

    @property
    def _layer_scale(self) -> float:
        assert self.scale is not None  # the constructor allows only a single scale for layers
        return self.scale

    def _bake_layer(self, lm: LoadedModel, site: Site, stack: ExitStack) -> None:
        import torch

        from ...models.weights import overwrite

        view = lm.at(site)
        if view.has_norm:
            norm = lm.contribution(site)
            gain, bias = norm.get_parameter("weight"), getattr(norm, "bias", None)
            overwrite(gain, self._layer_scale * (view.norm_offset + gain.float()) - view.norm_offset, stack)
            if isinstance(bias, torch.Tensor):
                overwrite(bias, bias.float() * self._layer_scale, stack)
            return
        for weight in view.biased():
            overwrite(weight, weight.float() * self._layer_scale, stack)

    def _unit_factors(self, lm: LoadedModel) -> dict[Site, Tensor]:
        import torch

        factors: dict[Site, Tensor] = {}
        for site, (units, scales) in self._by_site.items():
            factor = torch.ones(lm.at(site).n_units)
            factor[torch.tensor(units)] = torch.tensor(scales)
            factors[site] = factor.to(lm.at(site).device)
        return factors

    @cached_property
    def _by_site(self) -> dict[Site, tuple[list[int], list[float]]]:
        """The units of each site, and their scales."""
        grouped: dict[Site, tuple[list[int], list[float]]] = {}
        for (site, unit), scale in self.units.items():
            units, scales = grouped.setdefault(site, ([], []))
            units.append(unit)
            scales.append(scale)
        return grouped

    def _tensors(self) -> dict[str, Tensor]:
        import torch

        tensors: dict[str, Tensor] = {}
        for part in PARTS:
            units = {unit: scale for unit, scale in self.units.items() if unit[0].part == part}
            if units or part == "mlp":
                prefix = "" if part == "mlp" else f"{part}."
                rows = [[site.layer, *([] if site.expert is None else [site.expert]), j] for site, j in units]
                width = 3 if part == "expert" else 2
                tensors |= {
                    f"{prefix}neurons": torch.tensor(rows, dtype=torch.int64).reshape(-1, width),
                    f"{prefix}scales": torch.tensor(list(units.values()), dtype=torch.float64),
                }
        return tensors

    @classmethod
    def _restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Meow2X:
        units: dict[Unit, float] = {}
        for part in PARTS:
            prefix = "" if part == "mlp" else f"{part}."
            if f"{prefix}neurons" in tensors:
                rows, scales = tensors[f"{prefix}neurons"].tolist(), tensors[f"{prefix}scales"].tolist()
                units |= {
                    (Site(row[0], part, row[1] if len(row) == 3 else None), row[-1]): scale
                    for row, scale in zip(rows, scales, strict=True)
                }
        scale = list(units.values()) if config["scale"] is None else config["scale"]
        return cls(
            layers=[*config["layers"], *config.get("sites", [])], neurons=list(units), scale=scale, mode=config["mode"]
        )


def _costs(lm: LoadedModel, statistics: ContrastStatistics) -> list[Float64[np.ndarray, " _n_units"]]:
    """Return the cost of removing each unit, by site."""
    from ...localization.scores import removal_costs

    if not statistics.C:
        raise ToxlocError("Ranking per cost needs the curvature; gather it with collect_contrast(curvature=True).")
    return [removal_costs(lm.at(site), statistics.C[site], statistics.S[site]) for site in statistics.sites]
