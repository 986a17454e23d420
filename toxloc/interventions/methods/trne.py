"""TRNE: norm-bounded rank-one changes of W_out, in closed form, without gradient descent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import ToxlocError
from ...models.sites import FEED_FORWARD, PARTS, BySite, Site
from ..base import Intervention, check_sites, sites_in_words
from ..rank_one import RankOne
from ..trne_settings import TRNESettings
from ..unit_edits import UnitEdits, steepest_edits

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from ...models.loaded import LoadedModel
    from ...texts.contrast import ContrastSet
    from ..evidence import Evidence

RIDGES = (0.1, 0.3, 1.0, 3.0)  # the candidates of ridge="auto"
HELD_OUT = 0.2  # share of the contrast set on which ridge="auto" compares the candidates


class TRNE(Intervention):
    """Add to W_out the rank-one matrix that raises NLL_T - NLL_N most for a bounded cost.

    NLL_T and NLL_N are the mean negative log-likelihoods per token of the toxic and the neutral texts, and G is the
    gradient of their difference, the contrast, with respect to W_out. For each layer:

    * `metric="frobenius"`: the cost is ||ΔW||_F, and ΔW = ε ||W_out||_F u₁ v₁ᵀ, where (u₁, v₁) is the leading singular
      pair of G. If k layers are edited, the relative norm of each is ε / sqrt(k).
    * `metric="kl"`: the cost is tr(S ΔWᵀ C ΔW), the second-order change of the model's predictions on neutral text,
      and ΔW = s σ₁ (C̃^(-1/2) u₁)(S̃^(-1/2) v₁)ᵀ, where C̃ and S̃ are C and S with the ridge added, (σ₁, u₁, v₁) is
      the leading singular triple of C̃^(-1/2) G S̃^(-1/2), and the strength s is the same for all layers. σ₁ is the
      editability of the layer: gain per unit of cost, comparable across depth.

    W_O of an attention is edited in the same way, with the outputs z of the heads as keys.

    `TRNE.fit` computes the changes from texts; the constructor takes given rank-one changes, also several per layer.

    Args:
        edits: the rank-one changes.
        settings: the settings of the fit, for files and reports.

    Raises:
        ToxlocError: no changes.

    Source: "Where Does Toxicity Live?", arXiv:2605.27997 (frobenius); the curvature is that of Martens and Grosse
    2015, arXiv:1503.05671.

    Example:
        >>> e = TRNE.fit(lm, toxloc.load_contrast(), budget=0.01)      # doctest: +SKIP
        >>> with e.applied(lm): ...                                    # doctest: +SKIP
    """

    kind: ClassVar[str] = "trne"
    title: ClassVar[str] = "TRNE"
    paper: ClassVar[str] = '"Where Does Toxicity Live?", arXiv:2605.27997'
    colour: ClassVar[str | None] = "#1f9d6b"
    bakeable: ClassVar[bool] = True
    Settings = TRNESettings

    def __init__(self, edits: Sequence[RankOne], settings: dict[str, Any] | None = None):
        super().__init__()
        if not edits:
            raise ToxlocError("TRNE needs at least one rank-one change.")
        self.edits = list(edits)
        self.settings = settings or {}

    def __repr__(self) -> str:
        sites = sorted({edit.site for edit in self.edits})
        layers = [site.layer if site.part == "mlp" else str(site) for site in sites]
        return f"TRNE({self.settings.get('metric', 'custom')}, layers={layers})"

    @classmethod
    def needs(cls, settings: TRNESettings) -> frozenset[str]:
        """Return gradients and, for the kl metric, curvature; empty if the fit gathers its statistics itself."""
        if not settings.shares_statistics:
            return frozenset()
        return frozenset({"gradients", "curvature"} if settings.metric == "kl" else {"gradients"})

    @classmethod
    def _fit(cls, evidence: Evidence, settings: TRNESettings) -> TRNE:
        lm = evidence.lm
        if evidence.is_given and (settings.ridge == "auto" or settings.shrink):
            raise ToxlocError(
                'ridge="auto" and shrink=True split the contrast set and gather their own statistics; '
                "leave statistics= out."
            )
        _check_layers(lm, settings)
        check_sites(lm, settings.emphasis)
        if settings.ridge == "auto":
            return cls._with_best_ridge(evidence, settings)
        edit: TRNE | None = None
        for nth in range(settings.rounds):
            with edit.applied(lm) if edit else nullcontext():
                unit_edits = steepest_edits(evidence if nth == 0 else evidence.on(evidence.pairs), settings)
            edit = cls._with_strength(evidence, edit, unit_edits, settings, nth)
        assert edit is not None
        edit.note_fit(lm, {}, neutral=evidence.neutral)
        return edit

    @classmethod
    def _with_strength(
        cls, evidence: Evidence, before: TRNE | None, unit_edits: UnitEdits, settings: TRNESettings, nth: int
    ) -> TRNE:
        """Add the unit edits, multiplied by a strength, to the edits of `before`, the result of `nth` rounds.

        The settings fix the strength; otherwise it is the largest within the shares of the budget of all these rounds.
        """
        lm, earlier = evidence.lm, before.edits if before else []

        def scaled(strength: float) -> TRNE:
            edit = cls([*earlier, *(change.scaled(strength) for change in unit_edits.edits)], _config(settings))
            norms = {_key(site): value for site, value in edit._relative_norms(lm).items()}
            total = sum(value**2 for value in unit_edits.editability.values())
            editability = {_key(site): value for site, value in unit_edits.editability.items()}
            edit.note_fit(
                lm,
                {
                    "layers": [int(key) if key.isdigit() else key for key in norms],
                    "strength": strength,
                    "rounds": len(edit.edits) // len(unit_edits.edits),
                    "norm": math.hypot(*norms.values()),
                    "editability": editability,
                    "share_of_cost": {key: value**2 / total for key, value in editability.items()},
                    "relative_norm": norms,
                    **({"experts_left_alone": len(unit_edits.left_alone)} if unit_edits.left_alone else {}),
                },
            )
            return edit

        relative = math.hypot(*cls(unit_edits.edits)._relative_norms(lm).values())
        if settings.norm is not None:
            return scaled(settings.norm / relative)
        if settings.strength is not None:
            return scaled(settings.strength)
        share, first = settings.budget.scaled(1 / settings.rounds), 0.02 / relative
        if unit_edits.editability:
            first = math.sqrt(2 * share.least / sum(value**2 for value in unit_edits.editability.values()))
        at_zero = before.record["spent"] * nth / (nth + 1) if before else 0.0
        return evidence.strongest(scaled, share.scaled(nth + 1), first=first, at_zero=at_zero)

    @classmethod
    def _with_best_ridge(cls, evidence: Evidence, settings: TRNESettings) -> TRNE:
        lm = evidence.lm
        fitted, held_out = evidence.pairs.split(1 - HELD_OUT, settings.seed)
        on_fitted = evidence.on(fitted)
        before, tried = _contrast(lm, held_out), []
        for ridge in RIDGES:
            edit = cls._fit(on_fitted, TRNESettings.of(settings, ridge=ridge))
            with edit.applied(lm):
                tried.append((_contrast(lm, held_out) - before, ridge, edit))
        best = max(tried, key=lambda trial: trial[0])[2]
        best.note_fit(lm, {"ridges": {str(ridge): rise for rise, ridge, _ in tried}})
        return best

    @property
    def in_weights(self) -> bool:
        """Always True: the method edits W."""
        return True

    def config(self) -> dict[str, Any]:
        """Return the settings of the fit; the vectors are in the tensors."""
        return dict(self.settings)

    def where(self) -> str:
        """Describe in words which layers it edits."""
        return sites_in_words(edit.site for edit in self.edits)

    def check(self, lm: LoadedModel) -> None:
        """Raise ToxlocError if a site is not in the model or a vector has the wrong length."""
        check_sites(lm, (edit.site for edit in self.edits))
        for edit in self.edits:
            view = lm.at(edit.site)
            if (len(edit.u), len(edit.v)) != (view.d_in, lm.d_model):
                width = "d_mlp" if edit.site.part in FEED_FORWARD else "d_in"
                raise ToxlocError(
                    f"This TRNE edit is for {width}={len(edit.u)}, d_model={len(edit.v)}; {lm.name} has "
                    f"{width}={view.d_in}, d_model={lm.d_model}. Fit it on this model."
                )

    def low_rank(self) -> BySite[tuple[Float[Tensor, "r d_in"], Float[Tensor, "r d_model"]]]:
        """Return the stacked vectors u and v by site; the ΔW of a site is uᵀ v."""
        import torch

        sites = sorted({edit.site for edit in self.edits})
        by_site = {site: [edit for edit in self.edits if edit.site == site] for site in sites}
        return BySite(
            {
                site: (torch.stack([edit.u for edit in edits]), torch.stack([edit.v for edit in edits]))
                for site, edits in by_site.items()
            }
        )

    def _install(self, lm: LoadedModel, stack: ExitStack) -> None:
        from ...models.weights import add_low_rank

        for site, (u, v) in self.low_rank().items():
            add_low_rank(lm.at(site), u, v, stack)

    def _relative_norms(self, lm: LoadedModel) -> dict[Site, float]:
        """Return ||ΔW||_F / ||W||_F by site, with ||uᵀ v||_F computed from the small Gram matrices."""
        return {
            site: float(((u @ u.T) * (v @ v.T)).sum().clamp_min(0).sqrt() / lm.W_out(site).float().norm())
            for site, (u, v) in self.low_rank().items()
        }

    def _tensors(self) -> dict[str, Tensor]:
        import torch

        tensors: dict[str, Tensor] = {}
        for prefix, edits in self._stacks().items():
            tensors |= {
                f"{prefix}layer": torch.tensor([edit.site.layer for edit in edits]),
                f"{prefix}u": torch.stack([edit.u for edit in edits]),
                f"{prefix}v": torch.stack([edit.v for edit in edits]),
            }
            if edits[0].site.expert is not None:
                tensors[f"{prefix}expert"] = torch.tensor([edit.site.expert for edit in edits])
        return tensors

    def _stacks(self) -> dict[str, list[RankOne]]:
        """Group the changes by part and width of u; the keys are the prefixes of the tensors' names in a file."""
        stacks: dict[str, list[RankOne]] = {}
        for part in PARTS:
            edits = [edit for edit in self.edits if edit.site.part == part]
            for i, width in enumerate(dict.fromkeys(len(edit.u) for edit in edits)):
                prefix = "" if part == "mlp" and i == 0 else f"{part}." if i == 0 else f"{part}.{width}."
                stacks[prefix] = [edit for edit in edits if len(edit.u) == width]
        return stacks

    @classmethod
    def _restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> TRNE:
        edits = []
        for prefix in [name.removesuffix("layer") for name in tensors if name.endswith("layer")]:
            layers, us, vs = (tensors[f"{prefix}{name}"] for name in ("layer", "u", "v"))
            experts = tensors.get(f"{prefix}expert")
            numbers = [None] * len(layers) if experts is None else [int(number) for number in experts]
            part = prefix.split(".")[0] or "mlp"
            sites = [Site(int(layer), part, number) for layer, number in zip(layers, numbers, strict=True)]
            edits += [RankOne(site, u, v) for site, u, v in zip(sites, us, vs, strict=True)]
        return cls(edits, config)


def _config(settings: TRNESettings) -> dict[str, Any]:
    """Return the settings that are saved with an edit."""
    curved = settings.metric == "kl"
    return {
        "metric": settings.metric,
        "ridge": settings.ridge if curved else None,
        "shrink": settings.shrink,
        "fisher": settings.fisher if curved else None,
        "seed": settings.seed,
        "emphasis": {_key(site): factor for site, factor in settings.emphasis.items()},
    }


def _key(site: Site) -> str:
    """Return the name of a site in a record; the name of an MLP is its layer number."""
    return str(site.layer) if site.part == "mlp" else str(site)


def _contrast(lm: LoadedModel, pairs: ContrastSet) -> float:
    """Return NLL_T - NLL_N, each the mean per token."""
    from ...evaluation.cost.perplexity import mean_nll

    return mean_nll(lm, pairs.toxic, 128) - mean_nll(lm, pairs.neutral, 128)


def _check_layers(lm: LoadedModel, settings: TRNESettings) -> None:
    layers, available = settings.layers, len(lm.sites_of_choice(settings.sites))
    if isinstance(layers, tuple):
        check_sites(lm, layers)
    elif layers is not None and not 1 <= layers <= available:
        raise ToxlocError(
            f"layers={layers} is out of range; {lm.name} has {available} sites to edit, so give 1 to {available}."
        )
