"""The steepest rank-one change of each site, in closed form, from which TRNE is scaled."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ToxlocError
from ..models.sites import Site
from .settings import parts_of_choice

if TYPE_CHECKING:
    from ..localization.statistics import ContrastStatistics
    from ..models.loaded import LoadedModel
    from .evidence import Evidence

from .rank_one import RankOne
from .trne_settings import TRNESettings


@dataclass(frozen=True)
class UnitEdits:
    """Changes at strength 1, and the editability of their sites (empty for frobenius)."""

    edits: list[RankOne]
    editability: dict[Site, float]


def _editable_sites(lm: LoadedModel, settings: TRNESettings) -> list[Site]:
    """Return the sites that may be edited."""
    if isinstance(settings.layers, tuple):
        return list(settings.layers)
    return lm.sites(*parts_of_choice(settings.sites))


def steepest_edits(evidence: Evidence, settings: TRNESettings) -> UnitEdits:
    """Return the steepest changes of the sites that the settings choose, at strength 1, multiplied by their emphasis.

    Raises:
        ToxlocError: the statistics were given and lack the gradients or, for metric="kl", the curvature; every change
            is zero; or every edited site has emphasis 0.
    """
    unscaled = (_kl_edits if settings.metric == "kl" else _frobenius_edits)(evidence, settings)
    emphasis = settings.emphasis
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
    )


def _frobenius_edits(evidence: Evidence, settings: TRNESettings) -> UnitEdits:
    """Return ||W||_F / sqrt(k) u₁ v₁ᵀ per site, to be multiplied by ε."""
    from ..localization.linalg import steepest

    lm, sites = evidence.lm, _editable_sites(evidence.lm, settings)
    # An explicit list of layers is a subset of the sites that other methods use, so shared statistics suffice.
    s = evidence.statistics(frozenset({"gradients"}), _sites_to_gather(lm, settings))
    chosen = _choose({site: float(s.G(site).norm()) for site in sites}, settings.layers, 1)
    edits = []
    for site in chosen:
        _, u, v = steepest(s.G(site))
        share = lm.W_out(site).float().norm() / math.sqrt(len(chosen))
        edits.append(RankOne(site, (share * u).float(), v.float()))
    return UnitEdits(edits, {})


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
    for group, s in _with_curvature(evidence, settings):
        for site in group:
            if halves is None:
                sigma, u, v = steepest_at_cost(s.G(site), s.C[site], s.S[site], ridge)
            else:
                gradients = halves[0].G(site), halves[1].G(site)
                sigma, u, v = steepest_beyond_noise(gradients, s.C[site], s.S[site], ridge)
            edits[site], editability[site] = RankOne(site, (sigma * u).float(), v.float()), sigma
    chosen = _choose(editability, settings.layers, len(editability))
    return UnitEdits([edits[site] for site in chosen], {site: editability[site] for site in chosen})


def _sites_to_gather(lm: LoadedModel, settings: TRNESettings) -> list[Site]:
    """Return all sites of the edited parts; their statistics are gathered, so that other methods can share them."""
    parts = dict.fromkeys(site.part for site in _editable_sites(lm, settings))
    return lm.sites(*parts)


def _with_curvature(evidence: Evidence, settings: TRNESettings) -> Iterable[tuple[list[Site], ContrastStatistics]]:
    """Return groups of sites whose C fit in memory, with their statistics; a single group if all sites fit."""
    from ..localization.statistics import collect_contrast

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
            sites=gathered,
            curvature=True,
            curved=group,
            moments=False,
            fisher=settings.fisher,
            more_neutral=evidence.neutral.fit,
        )

    if evidence.fits(sites):
        key = ("trne", tuple(sites), settings.fisher)
        return [(sites, evidence.remember(key, lambda: collected(sites)))]
    return _in_turn(lm, sites, evidence.memory, collected)


def _in_turn(
    lm: LoadedModel, sites: list[Site], memory: int, collected: Callable[[list[Site]], ContrastStatistics]
) -> Iterator[tuple[list[Site], ContrastStatistics]]:
    """Yield groups of sites, at least one each, whose C fit in `memory`, with their statistics from one pass each."""
    group: list[Site] = []
    for site in sites:
        if group and 4 * sum(lm.at(member).d_in ** 2 for member in [*group, site]) > memory:
            yield group, collected(group)
            group = []
        group.append(site)
    yield group, collected(group)


def _choose(values: dict[Site, float], layers: int | Sequence[Site] | None, default: int) -> list[Site]:
    """Return all sites if `layers` lists them, else that number of sites with the largest values, sorted by depth."""
    if isinstance(layers, tuple):
        return sorted(values)
    count = default if layers is None else layers
    return sorted(sorted(values, key=lambda site: -values[site])[:count])  # type: ignore[index]
