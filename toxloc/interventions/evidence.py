"""Evidence: the data that methods are fitted from, gathered once for all methods of a run, a sweep or a benchmark."""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float64
from torch import Tensor

from ..errors import ToxlocError
from ..evaluation.cost.fluency import Unedited
from ..localization.statistics import (
    MATRICES,
    ContrastStatistics,
    bytes_of,
    collect_contrast,
    groups_that_fit,
    statistics_memory,
)
from ..localization.unit_aurocs import unit_aurocs
from ..models.loaded import LoadedModel
from ..models.protocols import AppliedIntervention
from ..models.sites import AnySite, BySite, Site, sites_of
from ..support.arguments import check_kind
from ..texts.contrast import ContrastSet
from ..texts.loading import load_neutral
from ..texts.neutral import NeutralText
from .budget import Budget
from .directions import residual_sides
from .settings import StrengthSettings
from .tuning import I, snapshots, tune

T = TypeVar("T")


class Evidence:
    """Statistics and activations gathered from one model, one contrast set and neutral text.

    Methods declare the statistics that they need (`Intervention.needs`). Call `expect` with the needs of all methods
    and scores before the first fit, so that one pass over the texts gathers all statistics. The statistics describe the
    model at the time of that pass: make new evidence after an edit of the model.

    Args:
        lm: the model.
        pairs: the contrast set.
        neutral: everyday text; by default the built-in text, loaded when it is first needed.
        statistics: statistics from `collect_contrast`, which are used instead of gathering any.
        memory: bytes that the matrices of all sites may take (G, C and S); by default 4 GiB, or 1 GiB if the model is
            offloaded. If they need more, they are not shared, but gathered for one group of sites after another by each
            method that needs them.

    Raises:
        ToxlocError: both sides of the contrast set hold the same texts.

    Example:
        >>> evidence = Evidence(lm, pairs).expect("gradients", "curvature")                        # doctest: +SKIP
        >>> [m.fit(lm, pairs, evidence=evidence) for m in (toxloc.TRNE, toxloc.Meow2X)]            # doctest: +SKIP
    """

    def __init__(
        self,
        lm: LoadedModel,
        pairs: ContrastSet,
        neutral: NeutralText | None = None,
        *,
        statistics: ContrastStatistics | None = None,
        memory: int | None = None,
    ):
        check_kind(pairs, ContrastSet, "the contrast set")
        if neutral is not None:
            check_kind(neutral, NeutralText, "the everyday text")
        if set(pairs.toxic) == set(pairs.neutral):
            raise ToxlocError(
                f"Both sides of the contrast set {pairs.name!r} hold the same texts, so nothing tells them apart; "
                "check the columns or the labels."
            )
        self.lm, self.pairs, self.memory = lm, pairs, statistics_memory(lm, memory)
        self._neutral, self._given = neutral, statistics
        self._expected: set[str] = set()
        self._gathered: dict[tuple[Site, ...], tuple[frozenset[str], ContrastStatistics]] = {}
        self._memo: dict[Hashable, Any] = {}
        # By the interventions that were applied.
        self._unedited: dict[tuple[AppliedIntervention, ...], list[Unedited]] = {}

    @property
    def neutral(self) -> NeutralText:
        """The everyday text; the built-in text is loaded at the first access if none was given."""
        if self._neutral is None:
            self._neutral = load_neutral()
        return self._neutral

    @property
    def is_given(self) -> bool:
        """Whether statistics were passed in, so that none are gathered."""
        return self._given is not None

    def on(self, pairs: ContrastSet) -> "Evidence":
        """Return new evidence for the model in its current state, other contrast texts and the same neutral text.

        The predictions on `neutral.tune` are shared, because they depend neither on the contrast texts nor on an edit
        that is reverted before the strength is tuned.
        """
        other = Evidence(self.lm, pairs, self._neutral, memory=self.memory)
        other._unedited = self._unedited
        return other

    def expect(self, *needs: str) -> "Evidence":
        """Announce statistics that will be needed, so that the first pass gathers them; return self.

        C and S are expected of every MLP and expert only, because methods edit these by default.
        """
        self._expected |= set(needs)
        return self

    def fits(self, sites: Sequence[AnySite], needs: frozenset[str] = MATRICES) -> bool:
        """Whether the matrices of all these sites (by default G, C and S) fit in `memory` together."""
        return bytes_of(self.lm, sites, needs) <= self.memory

    def statistics(
        self, needs: frozenset[str] = frozenset(), sites: Sequence[AnySite] | None = None
    ) -> ContrastStatistics:
        """Return the statistics of some sites; they are gathered at the first call that needs them.

        Sites that were gathered together with others are not gathered again.

        Args:
            needs: names of the statistics: "moments", "gradients", "curvature", "reliance", "peaks",
                "differences".
            sites: the sites; by default every MLP and expert.
        """
        if self._given is not None:
            return self._given
        chosen = tuple(self.lm.sites_of_choice("mlp") if sites is None else sites_of(sites))
        for known, gathered in self._gathered.values():
            covered = gathered.C if "curvature" in needs else gathered.sites
            if needs <= known and all(site in covered for site in chosen):
                return gathered if len(chosen) == len(gathered.sites) else gathered.at(chosen)
        known, _ = self._gathered.get(chosen, (frozenset(), None))
        wanted, curved = needs | known | self._expected, chosen
        if "curvature" not in needs | known:
            curved = tuple(site for site in chosen if site in self._edited_by_default) or chosen
        for extra in ("curvature", "reliance", "gradients"):
            if extra not in needs | known and not self._fit(chosen, wanted, curved):
                wanted -= {extra}
        gathered = self._gather(chosen, frozenset(wanted), curved)
        self._gathered[chosen] = frozenset(wanted), gathered
        return gathered

    @cached_property
    def _edited_by_default(self) -> set[Site]:
        return set(self.lm.sites_of_choice("mlp"))

    def _fit(self, sites: Sequence[Site], needs: frozenset[str], curved: Sequence[Site]) -> bool:
        """Whether the matrices of some sites fit in `memory`, with the curvature of some of them."""
        curvature = needs & {"curvature"}
        return bytes_of(self.lm, sites, needs - curvature) + bytes_of(self.lm, curved, curvature) <= self.memory

    def groups(self, needs: frozenset[str], sites: Sequence[AnySite] | None = None) -> Iterator[ContrastStatistics]:
        """Yield the statistics of some sites, of one group of sites after another if `memory` is too small for all.

        Drop each before the next is taken, so that only those of one group are in memory.

        Args:
            needs: see `statistics`.
            sites: the sites; by default every MLP and expert.
        """
        chosen = self.lm.sites_of_choice("mlp") if sites is None else sites_of(sites)
        if self.is_given or self.fits(chosen, needs):
            yield self.statistics(needs, chosen)
            return
        for group in groups_that_fit(self.lm, chosen, self.memory, needs):
            yield self._gather(group, needs)

    def _gather(
        self, sites: Sequence[Site], needs: frozenset[str], curved: Sequence[Site] | None = None
    ) -> ContrastStatistics:
        return collect_contrast(
            self.lm,
            self.pairs,
            sites=sites,
            curved=curved,
            gradients="gradients" in needs,
            curvature="curvature" in needs,
            reliance="reliance" in needs,
            peaks="peaks" in needs,
            differences="differences" in needs,
            moments=bool(needs & {"moments", "peaks", "differences"}),
            more_neutral=self.neutral.fit if "curvature" in needs else (),
        )

    @cached_property
    def unit_aurocs(self) -> BySite[Float64[np.ndarray, " _n_units"]]:
        """AUROC of every output unit of the MLPs' linear maps, by site (`toxloc.localization.unit_aurocs`)."""
        return unit_aurocs(self.lm, self.pairs)

    def residual_sides(
        self, layers: Sequence[int]
    ) -> list[tuple[Float64[Tensor, "n_toxic d_model"], Float64[Tensor, "n_neutral d_model"]]]:
        """Return the residual stream after each layer, one row per toxic and per neutral text (see `directions`)."""
        missing = [layer for layer in layers if ("residual", layer) not in self._memo]
        if missing:
            sides = residual_sides(self.lm, self.pairs, missing)
            self._memo |= {("residual", layer): side for layer, side in zip(missing, sides, strict=True)}
        return [self._memo["residual", layer] for layer in layers]

    def remember(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return the value stored under a key; the first call computes and stores it."""
        if key not in self._memo:
            self._memo[key] = compute()
        result: T = self._memo[key]
        return result

    def at_strength(
        self, make: Callable[[float], I], settings: StrengthSettings, *, first: float, limit: float = math.inf
    ) -> I:
        """Return the intervention at the strength given in the settings, or else at the largest within the budget."""
        if settings.strength is not None:
            return make(settings.strength)
        return self.strongest(make, settings.budget, first=first, limit=limit)

    def strongest(
        self,
        make: Callable[[float], I],
        budget: Budget,
        *,
        first: float,
        limit: float = math.inf,
        whole: bool = False,
        at_zero: float = 0.0,
    ) -> I:
        """Return the intervention at the largest strength within the budget on `neutral.tune` (see `tuning.tune`)."""
        options: dict[str, Any] = {"limit": limit, "whole": whole, "at_zero": at_zero}
        return tune(self.lm, make, budget, self.neutral, first, unedited=self._snapshots(), **options)

    def _snapshots(self) -> list[Unedited]:
        """Return the predictions on `neutral.tune` of the model with the interventions that are applied to it now.

        All fits and all evidence made by `on` share one pass over the text. The hidden states are kept, so that it
        serves budgets with and without KL.
        """
        applied = tuple(self.lm.interventions)
        if applied not in self._unedited:
            self._unedited[applied] = snapshots(self.lm, self.neutral.tune)
        return self._unedited[applied]
