"""Evidence: the data that methods are fitted from, gathered once for all methods of a run, a sweep or a benchmark."""

import math
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float64
from torch import Tensor

from ..errors import ToxlocError
from ..evaluation.cost.fluency import Unedited
from ..localization.statistics import ContrastStatistics, collect_contrast
from ..localization.unit_aurocs import unit_aurocs
from ..models.loaded import LoadedModel
from ..models.sites import AnySite, Site, sites_of
from ..support.arguments import check_kind
from ..texts.contrast import ContrastSet
from ..texts.loading import load_neutral
from ..texts.neutral import NeutralText
from .budget import Budget
from .directions import residual_sides
from .settings import StrengthSettings
from .tuning import I, tune

MEMORY = 4 << 30  # bytes that the C matrices of all sites may take
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
        memory: bytes that the C matrices of all sites may take. If they need more, they are not shared, and TRNE
            gathers them for one group of sites after another.

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
        memory: int = MEMORY,
    ):
        check_kind(pairs, ContrastSet, "the contrast set")
        if neutral is not None:
            check_kind(neutral, NeutralText, "the everyday text")
        if set(pairs.toxic) == set(pairs.neutral):
            raise ToxlocError(
                f"Both sides of the contrast set {pairs.name!r} hold the same texts, so nothing tells them apart; "
                "check the columns or the labels."
            )
        self.lm, self.pairs, self.memory = lm, pairs, memory
        self._neutral, self._given = neutral, statistics
        self._expected: set[str] = set()
        self._gathered: dict[tuple[Site, ...], tuple[frozenset[str], ContrastStatistics]] = {}
        self._memo: dict[Hashable, Any] = {}

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
        """Return new evidence for the model in its current state, other contrast texts and the same neutral text."""
        return Evidence(self.lm, pairs, self._neutral, memory=self.memory)

    def expect(self, *needs: str) -> "Evidence":
        """Announce statistics that will be needed, so that the first pass gathers them; return self."""
        self._expected |= set(needs)
        return self

    def fits(self, sites: Sequence[AnySite]) -> bool:
        """Whether the C matrices of all these sites fit in `memory` together."""
        return 4 * sum(self.lm.at(site).d_in ** 2 for site in sites) <= self.memory

    def statistics(
        self, needs: frozenset[str] = frozenset(), sites: Sequence[AnySite] | None = None
    ) -> ContrastStatistics:
        """Return the statistics of some sites; they are gathered at the first call that needs them.

        Args:
            needs: names of the statistics: "moments", "gradients", "curvature", "reliance", "peaks".
            sites: the sites; by default every MLP.
        """
        if self._given is not None:
            return self._given
        chosen = tuple(self.lm.sites("mlp") if sites is None else sites_of(sites))
        known, gathered = self._gathered.get(chosen, (frozenset(), None))
        if gathered is None or not needs <= known:
            wanted = needs | known | self._expected
            if "curvature" in self._expected and "curvature" not in needs and not self.fits(chosen):
                wanted -= {"curvature"}
            gathered = collect_contrast(
                self.lm,
                self.pairs,
                sites=chosen,
                gradients="gradients" in wanted,
                curvature="curvature" in wanted,
                reliance="reliance" in wanted,
                peaks="peaks" in wanted,
                moments=bool(wanted & {"moments", "peaks"}),
                more_neutral=self.neutral.fit if "curvature" in wanted else (),
            )
            self._gathered[chosen] = frozenset(wanted), gathered
        return gathered

    @cached_property
    def unit_aurocs(self) -> Float64[np.ndarray, "n_layers n_units"]:
        """AUROC of every output unit of the MLPs' linear maps (`toxloc.localization.unit_aurocs`)."""
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

    def strongest(self, make: Callable[[float], I], budget: Budget, *, first: float, limit: float = math.inf) -> I:
        """Return the intervention at the largest strength within the budget on `neutral.tune` (see `tuning.tune`)."""
        kl = budget.kl is not None
        unedited = self.remember(("unedited", kl), lambda: Unedited(self.lm, self.neutral.tune, kl=kl))
        return tune(self.lm, make, budget, self.neutral, first, limit=limit, unedited=unedited)
