"""The steepest rank-one change of each site, in closed form, from which TRNE is scaled."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ToxlocError
from ..models.sites import Site
from .rank_one import RankOne
from .trne_settings import TRNESettings

if TYPE_CHECKING:
    from torch import Tensor

    from ..localization.statistics import ContrastStatistics
    from ..models.loaded import LoadedModel
    from .evidence import Evidence


FEWEST_ROUTED = 32


@dataclass(frozen=True)
class UnitEdits:
    """Changes at strength 1, the editability of their sites (empty for frobenius), and the experts that are left alone.

    An expert to which fewer than `FEWEST_ROUTED` tokens of one side of the contrast set are routed is left alone,
    because its gradient is mostly noise.
    """

    edits: list[RankOne]
    editability: dict[Site, float]
    left_alone: list[Site]


def _editable_sites(lm: LoadedModel, settings: TRNESettings) -> list[Site]:
    """Return the sites that may be edited."""
    if isinstance(settings.layers, tuple):
        return list(settings.layers)
    return lm.sites_of_choice(settings.sites)


def steepest_edits(evidence: Evidence, settings: TRNESettings) -> UnitEdits:
    """Return the steepest changes of the sites that the settings choose, at strength 1, multiplied by their emphasis.

    Raises:
        ToxlocError: the statistics were given and lack the gradients or, for metric="kl", the curvature; every change
            is zero; or every edited site has emphasis 0.
    """
    unscaled = (_kl_edits if settings.metric == "kl" else _frobenius_edits)(evidence, settings)
    emphasis = settings.emphasis
    if not unscaled.edits:
        raise ToxlocError(
            f"None of the {len(unscaled.left_alone)} experts of {evidence.lm.name} that may be edited gets "
            f"{FEWEST_ROUTED} toxic and {FEWEST_ROUTED} neutral tokens; give more contrast texts."
        )
    if not any(edit.u.any() and edit.v.any() for edit in unscaled.edits):
        raise ToxlocError(
            f"TRNE cannot edit {evidence.lm.name}: the toxic and the neutral texts give the same gradients, or the "
            "weights are zero. Give other texts or layers."
        )
    if all(emphasis.get(edit.site) == 0 for edit in unscaled.edits):
        raise ToxlocError("emphasis is 0 for every edited layer, so nothing would change; give a factor above 0.")
    return UnitEdits(
        [edit.scaled(emphasis.get(edit.site, 1.0)) for edit in unscaled.edits],
        {site: emphasis.get(site, 1.0) * sigma for site, sigma in unscaled.editability.items()},
        unscaled.left_alone,
    )


def _is_thin(s: ContrastStatistics, site: Site) -> bool:
    """Whether a site is an expert to which too few tokens are routed."""
    routed = s.routed(site)
    return routed is not None and routed < FEWEST_ROUTED


def _frobenius_edits(evidence: Evidence, settings: TRNESettings) -> UnitEdits:
    """Return ||W||_F / sqrt(k) u₁ v₁ᵀ per site, to be multiplied by ε."""
    from ..localization.linalg import steepest

    lm, sites = evidence.lm, _editable_sites(evidence.lm, settings)
    norms: dict[Site, float] = {}
    gradients: dict[Site, Tensor] = {}
    thin: list[Site] = []
    # An explicit list of layers is a subset of the sites that other methods use, so shared statistics suffice.
    for s in evidence.groups(frozenset({"gradients"}), _sites_to_gather(lm, settings)):
        for site in [site for site in s.sites if site in sites]:
            if _is_thin(s, site):
                thin.append(site)
                continue
            gradients[site] = s.G(site)
            norms[site] = float(gradients[site].norm())
            kept = _choose(norms, settings.layers, 1)
            gradients = {site: G for site, G in gradients.items() if site in kept}
        del s  # before the next group is gathered
    edits = []
    for site in sorted(gradients):
        _, u, v = steepest(gradients[site])
        share = lm.W_out(site).float().norm() / math.sqrt(len(gradients))
        edits.append(RankOne(site, (share * u).float(), v.float()))
    return UnitEdits(edits, {}, thin)


def _kl_edits(evidence: Evidence, settings: TRNESettings) -> UnitEdits:
    """Return σ₁ (C̃^(-1/2) u₁)(S̃^(-1/2) v₁)ᵀ per site, to be multiplied by s, and the editability σ₁ per site."""
    from ..localization.linalg import steepest_at_cost, steepest_beyond_noise

    lm, pairs, ridge = evidence.lm, evidence.pairs, settings.ridge
    assert not isinstance(ridge, str)
    halves = None
    if settings.shrink:
        halves = [
            evidence.on(half).statistics(frozenset({"gradients"}), _sites_to_gather(lm, settings))
            for half in pairs.split(0.5, settings.seed)
        ]
    edits: dict[Site, RankOne] = {}
    editability: dict[Site, float] = {}
    thin: list[Site] = []
    for group, s in _with_curvature(evidence, settings):
        for site in group:
            if _is_thin(s, site):
                thin.append(site)
                continue
            if halves is None:
                sigma, u, v = steepest_at_cost(s.G(site), s.C[site], s.S[site], ridge)
            else:
                gradients = halves[0].G(site), halves[1].G(site)
                sigma, u, v = steepest_beyond_noise(gradients, s.C[site], s.S[site], ridge)
            edits[site], editability[site] = RankOne(site, (sigma * u).float(), v.float()), sigma
        del s  # before the next group is gathered
    chosen = _choose(editability, settings.layers, len(editability))
    return UnitEdits([edits[site] for site in chosen], {site: editability[site] for site in chosen}, thin)


def _sites_to_gather(lm: LoadedModel, settings: TRNESettings) -> list[Site]:
    """Return all sites of the edited parts; their statistics are gathered, so that other methods can share them."""
    parts = dict.fromkeys(site.part for site in _editable_sites(lm, settings))
    return lm.sites(*parts)


def _with_curvature(evidence: Evidence, settings: TRNESettings) -> Iterable[tuple[list[Site], ContrastStatistics]]:
    """Return groups of sites whose statistics fit in memory, with these; a single group if all sites fit."""
    from ..localization.statistics import collect_contrast, groups_that_fit

    lm, sites = evidence.lm, _editable_sites(evidence.lm, settings)
    gathered = _sites_to_gather(lm, settings)
    if evidence.is_given or (settings.shares_statistics and evidence.fits(gathered)):
        s = evidence.statistics(frozenset({"gradients", "curvature"}), gathered)
        if not s.C:
            raise ToxlocError('metric="kl" needs the curvature; gather it with collect_contrast(curvature=True).')
        return [(sites, s)]

    def collected(group: list[Site]) -> ContrastStatistics:
        return collect_contrast(
            lm,
            evidence.pairs,
            sites=group,
            curvature=True,
            moments=False,
            fisher=settings.fisher,
            more_neutral=evidence.neutral.fit,
        )

    if evidence.fits(sites):
        key = ("trne", tuple(sites), settings.fisher)
        return [(sites, evidence.remember(key, lambda: collected(sites)))]
    return ((group, collected(group)) for group in groups_that_fit(lm, sites, evidence.memory))


def _choose(values: dict[Site, float], layers: int | Sequence[Site] | None, default: int) -> list[Site]:
    """Return all sites if `layers` lists them, else that number of sites with the largest values, sorted by depth."""
    if isinstance(layers, tuple):
        return sorted(values)
    count = default if layers is None else layers
    return sorted(sorted(values, key=lambda site: -values[site])[:count])  # type: ignore[index]
