"""Statistics of a contrast set: those of its toxic and of its neutral texts, and the curvature on neutral text."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from jaxtyping import Float
from torch import Tensor

from ..errors import ToxlocError
from ..models.loaded import AnyModel, LoadedModel
from ..models.sites import AnySite, BySite, Site, sites_of
from ..support.arguments import check_kind
from ..texts.contrast import ContrastSet
from ..texts.drawing import check_texts
from .contributions import random_groups
from .difference_statistics import DifferenceStatistics, collect_differences
from .first_difference import first_differences
from .text_statistics import Fisher, TextStatistics, collect

MEMORY = 4 << 30  # bytes that the matrices of sites that are gathered together may take
MATRICES = frozenset({"gradients", "curvature"})
T = TypeVar("T")


@dataclass
class ContrastStatistics:
    """The statistics of a contrast set, and the curvature on neutral text.

    Attributes:
        toxic: statistics of the toxic texts.
        neutral: statistics of the neutral texts.
        paired: whether groups with the same number on both sides hold the two halves of the same pairs.
        C: second moment [d_in, d_in] of the keys on neutral text, by site; empty if not gathered.
        S: second moment [d_model, d_model] of the output gradients on neutral text, by site; empty if not gathered.
        differences: what the sites add to the log-probability difference at the first difference of each pair; None if
            not gathered.
    """

    toxic: TextStatistics
    neutral: TextStatistics
    paired: bool
    C: BySite[Float[Tensor, "_d_in _d_in"]]
    S: BySite[Float[Tensor, "d_model d_model"]]
    differences: DifferenceStatistics | None = None

    @property
    def sites(self) -> list[Site]:
        """The sites whose statistics were gathered, layer by layer."""
        return list(self.toxic.G or self.toxic.keys)

    def restricted(self, *parts: str) -> "ContrastStatistics":
        """Return the statistics of the sites of some parts."""
        return self.at([site for site in self.sites if site.part in parts])

    def at(self, sites: Sequence[AnySite]) -> "ContrastStatistics":
        """Return the statistics of some of the sites."""
        chosen = set(sites_of(sites))

        def kept(by_site: BySite[T]) -> BySite[T]:
            return BySite({site: value for site, value in by_site.items() if site in chosen})

        def side(s: TextStatistics) -> TextStatistics:
            return replace(s, keys=kept(s.keys), routed=kept(s.routed), G=kept(s.G), C=kept(s.C), S=kept(s.S))

        d = self.differences
        return ContrastStatistics(
            side(self.toxic),
            side(self.neutral),
            self.paired,
            kept(self.C),
            kept(self.S),
            None if d is None else replace(d, sites=kept(d.sites), units=kept(d.units)),
        )

    def routed(self, site: AnySite) -> int | None:
        """Return how many tokens are routed to an expert on the side with fewer; None for other sites."""
        if site not in self.toxic.routed:
            return None
        return min(self.toxic.routed[site], self.neutral.routed[site])

    def G(self, site: AnySite) -> Float[Tensor, "d_in d_model"]:
        """Gradient of the contrast NLL_T - NLL_N with respect to a site's W."""
        return self.toxic.G[site] - self.neutral.G[site]


def collect_contrast(
    lm: AnyModel,
    pairs: ContrastSet,
    *,
    gradients: bool = True,
    curvature: bool = False,
    reliance: bool = False,
    peaks: bool = False,
    differences: bool = False,
    more_neutral: Sequence[str] = (),
    fisher: Fisher = "empirical",
    sites: Iterable[AnySite] | None = None,
    curved: Iterable[AnySite] | None = None,
    moments: bool = True,
    skip_first: bool = True,
    max_length: int = 128,
) -> ContrastStatistics:
    """Gather the statistics of both sides of a contrast set and, with `curvature`, C and S on neutral text.

    Args:
        lm: the model.
        pairs: the contrast set.
        gradients: gather G.
        curvature: gather C and S on the neutral side and on `more_neutral`.
        reliance: also gather S of the toxic side, which the score `combined` needs.
        peaks: gather the largest activations of every text, which the score `auroc` needs.
        differences: attribute the log-probability difference at the first difference of each pair, which the score
            `counterfactual` needs, with the mean over the neutral texts as the baseline.
        more_neutral: further neutral texts, used only for C and S, weighted by their tokens.
        fisher: "empirical" or "sampled", see `collect`; with "sampled" the neutral texts are read twice.
        sites: sites to gather statistics of; by default every MLP and expert.
        curved: sites whose C and S are gathered; by default all of `sites`.
        moments: gather means, variances and contributions, which scores need and TRNE does not.
        skip_first: see `collect`. With `differences`, the first position is left out of the mean, but not of the sum
            over the prefix.
        max_length: number of tokens read from each text.

    Raises:
        ToxlocError: in the same cases as `collect`; or, with `differences`, there are no moments, or the pairs have no
            first differences (see `first_differences`).

    Example:
        >>> from toxloc import load_contrast, load_model
        >>> s = collect_contrast(load_model(), load_contrast().limited(20))
        >>> s.G(3).shape
        torch.Size([1024, 256])
    """
    lm = LoadedModel.of(lm)
    check_kind(pairs, ContrastSet, "the contrast set")
    more_neutral = check_texts(more_neutral, "more_neutral")
    sites = lm.sites_of_choice("mlp") if sites is None else sites_of(sites)
    if differences and not moments:
        raise ToxlocError("differences=True needs the mean of the keys over the neutral texts; leave moments=True.")
    compared = first_differences(lm, pairs, max_length) if differences else None
    groups = random_groups(len(pairs.toxic), len(pairs.neutral), pairs.paired)
    options: dict[str, Any] = {
        "gradients": gradients,
        "moments": moments,
        "peaks": peaks,
        "skip_first": skip_first,
        "max_length": max_length,
        "sites": sites,
    }
    # G is always the gradient of the texts' tokens, so sampled tokens need another pass.
    second_pass = curvature and fisher == "sampled"
    toxic = collect(lm, pairs.toxic, group=groups[0], output_curvature=reliance, describe="toxic texts", **options)
    neutral = collect(
        lm,
        pairs.neutral,
        group=groups[1],
        curvature=curvature and not second_pass,
        curved=curved,
        describe="neutral texts",
        **options,
    )
    passes = [] if second_pass or not curvature else [neutral]
    texts = [*(pairs.neutral if second_pass else ()), *more_neutral]
    if curvature and texts:
        passes.append(
            collect(
                lm,
                texts,
                gradients=False,
                moments=False,
                curvature=True,
                sites=sites,
                curved=curved,
                fisher=fisher,
                max_length=max_length,
                describe="neutral text for the curvature",
            )
        )
    C, S = (
        BySite(
            {
                # Taken out of the passes, so that they use no more memory than the means.
                site: _weighted_mean([(side.n_predicted, getattr(side, factor).pop(site)) for side in passes])
                for site in (list(getattr(passes[0], factor)) if passes else ())
            }
        )
        for factor in "CS"
    )
    attributed = None
    if compared is not None:
        baseline = BySite({site: neutral.keys[site].mean for site in sites})
        attributed = collect_differences(lm, compared, sites=sites, baseline=baseline)
    return ContrastStatistics(toxic, neutral, pairs.paired, C, S, attributed)


def statistics_memory(lm: LoadedModel, memory: int | None) -> int:
    """Return the bytes that the matrices of all sites may take; by default less if the model is offloaded."""
    if memory is not None:
        return memory
    return MEMORY // 4 if lm.is_offloaded else MEMORY


def bytes_of(lm: LoadedModel, sites: Iterable[AnySite], needs: frozenset[str] = MATRICES) -> int:
    """Return the bytes that the matrices of some sites take.

    Args:
        lm: the model.
        sites: the sites.
        needs: the statistics: "gradients" for G of both sides, "curvature" for C and S, "reliance" for S of the toxic
            side, and for C of the toxic side at sites whose units are wider than one key. Others take little memory.
    """
    numbers, d = 0, lm.d_model
    for view in map(lm.at, sites):
        numbers += 2 * view.d_in * d if "gradients" in needs else 0
        numbers += view.d_in**2 + d**2 if "curvature" in needs else 0
        numbers += (view.d_in**2 if view.width > 1 else 0) + d**2 if "reliance" in needs else 0
    return 4 * numbers


def groups_that_fit(
    lm: LoadedModel, sites: Iterable[Site], memory: int, needs: frozenset[str] = MATRICES
) -> Iterator[list[Site]]:
    """Yield groups of successive sites, at least one each, whose matrices take at most `memory` bytes."""
    group: list[Site] = []
    for site in sites:
        if group and bytes_of(lm, [*group, site], needs) > memory:
            yield group
            group = []
        group.append(site)
    yield group


def _weighted_mean(parts: Sequence[tuple[int, Tensor]]) -> Tensor:
    """Return the mean of matrices, weighted by their token counts; the matrices are overwritten."""
    if len(parts) == 1:
        return parts[0][1]
    total = sum(count for count, _ in parts)
    first, *others = [M.mul_(count / total) for count, M in parts]
    for M in others:
        first += M
    return first
