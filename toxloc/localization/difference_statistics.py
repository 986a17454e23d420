"""What each site and unit adds to the log-probability difference of pairs at their first difference.

The two texts of a pair share a prefix. After it, let D = log p(toxic token) - log p(neutral token), in nats. A site
computes m = a @ W + b from its keys `a`; μ is a baseline for its keys, such as their mean over neutral text. One pass
over the prefixes computes for every unit and pair, with the sum over the positions of the prefix and the unit's keys,

    <dD/da, a - μ>.

To first order, it is how much D falls if the unit's activation is replaced by the baseline: positive where the unit
pushes towards the toxic token. The value of a site is the sum over its units. Nothing is cached: values are summed over
all pairs for each unit, and over small groups of pairs for each site, so memory does not grow with the number of pairs.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from ..models.banks import Bank, Routed
from ..models.batching import Batch, groups_of_rows, pad
from ..models.likelihood import token_nll
from ..models.loaded import LoadedModel
from ..models.site_view import Hook, SiteView
from ..models.sites import AnySite, BySite, Site
from ..support.progress import track
from .contributions import GROUPS_OF_PAIRS, random_groups
from .first_difference import FirstDifference, FirstDifferences
from .text_statistics import before_changes, frozen, with_gradient


@dataclass
class DifferenceStatistics:
    """The result of one pass over the shared prefixes of pairs.

    Attributes:
        n_pairs: number of pairs read.
        difference: mean over pairs of D, in nats.
        counts: number of pairs read of each group of pairs, float64 [groups].
        sites: sum over the pairs of each group of the site's value, float64 [groups], by site.
        units: mean over pairs of the value of every unit, float64 [n_units], by site.
    """

    n_pairs: int
    difference: float
    counts: Float64[np.ndarray, " groups"]
    sites: BySite[Float64[np.ndarray, " groups"]]
    units: BySite[Float64[np.ndarray, " _n_units"]]


def collect_differences(
    lm: LoadedModel,
    differences: FirstDifferences,
    *,
    sites: Sequence[AnySite],
    group: Int64[np.ndarray, " n"] | None = None,
    baseline: BySite[Float[Tensor, " _d_in"]] | None = None,
    skip_first: bool = False,
) -> DifferenceStatistics:
    """Attribute the log-probability difference at the first difference to sites and units, in one pass over the pairs.

    Args:
        lm: the model, which is left unchanged.
        differences: the pairs.
        sites: the sites.
        group: group of each usable pair; by default random, at most 512 groups of nearly equal size.
        baseline: baseline μ of the keys of each site, such as their mean over neutral text; None for zero. Of a routed
            expert, only the tokens that are routed to it are compared with the baseline.
        skip_first: leave the first position out of the sum over positions. By default it counts: where it is an
            attention sink, its activations are huge but the gradients with respect to them are small.

    Example:
        >>> from toxloc import load_contrast, load_model
        >>> from toxloc.localization.first_difference import first_differences
        >>> lm, pairs = load_model(), load_contrast().limited(20)
        >>> differences = first_differences(lm, pairs)
        >>> s = collect_differences(lm, differences, sites=[3])
        >>> s.units[3].shape, bool(np.isclose(s.units[3].sum(), s.sites[3].sum() / s.n_pairs, rtol=1e-3))
        ((1024,), True)
    """
    views = [lm.at(site) for site in sites]
    usable = differences.usable
    if group is None:
        group = groups_of_pairs(len(usable))
    reader = _Pass(lm, views, baseline, int(group.max()) + 1, skip_first)
    with reader.hooked():
        batches = groups_of_rows(lm, [len(difference.prefix) for difference in usable], gradients=True)
        for index in track(batches, "first differences"):
            batch, toxic, neutral = prefix_batch(lm, usable, index)
            reader.read(batch, toxic, neutral, group[index])
    return reader.result(len(usable))


def groups_of_pairs(n_pairs: int) -> Int64[np.ndarray, " n_pairs"]:
    """Return a random group for each of some pairs; at most 512 groups of nearly equal size."""
    return random_groups(n_pairs, n_pairs, paired=True, limit=GROUPS_OF_PAIRS)[0]


def prefix_batch(
    lm: LoadedModel, usable: Sequence[FirstDifference], index: list[int]
) -> tuple[Batch, Int[Tensor, " batch"], Int[Tensor, " batch"]]:
    """Return the right-padded prefixes of some pairs, and the tokens of both texts at the first difference."""
    batch = pad(lm, [usable[i].prefix for i in index], index, "right")
    toxic, neutral = ([getattr(usable[i], side)[0] for i in index] for side in ("toxic", "neutral"))
    return batch, torch.tensor(toxic, device=lm.device), torch.tensor(neutral, device=lm.device)


def log_difference(
    lm: LoadedModel, batch: Batch, toxic: Int[Tensor, " n"], neutral: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Return log p(toxic token) - log p(neutral token) after each of the first n right-padded rows, in nats.

    It is differentiable with respect to tensors that hooks on `lm.hooked` put into the graph.
    """
    rows = torch.arange(len(toxic), device=lm.device)
    hidden = lm.forward_hidden(batch.ids, batch.mask)[rows, batch.mask[: len(toxic)].sum(1) - 1]
    nll = token_nll(lm, torch.cat([hidden, hidden]), torch.cat([toxic, neutral]))
    difference: Tensor = nll[len(rows) :] - nll[: len(rows)]
    return difference


@dataclass(frozen=True)
class _Share:
    """An expert's share of one batch: for each token that counts, its text, its keys and its row of the bank's output.

    `scale` is what the gradient at the bank's output is divided by.
    """

    view: SiteView
    texts: Int[Tensor, " n"]
    keys: Float[Tensor, "n d_in"]
    rows: Int[Tensor, " n"]
    scale: Float[Tensor, "n 1"] | None


class _Pass:
    """The hooks of one pass and the sums that they accumulate."""

    def __init__(
        self,
        lm: LoadedModel,
        views: Sequence[SiteView],
        baseline: BySite[Float[Tensor, " _d_in"]] | None,
        n_groups: int,
        skip_first: bool,
    ):
        self.lm, self.views, self.skip_first = lm, views, skip_first
        self.baseline = {
            v.site: torch.zeros(v.d_in, device=v.device) if baseline is None else baseline[v.site].float().to(v.device)
            for v in views
        }
        self.experts: dict[int, dict[int, SiteView]] = {}  # the experts to read, by id(bank) and number
        for view in views:
            if view.bank is not None and view.site.expert is not None:
                self.experts.setdefault(id(view.bank), {})[view.site.expert] = view
        self.counts, self.total = np.zeros(n_groups), 0.0
        self.sites = BySite({view.site: np.zeros(n_groups) for view in views})
        self.units = BySite({view.site: np.zeros(view.n_units) for view in views})
        self.group = np.zeros(0, dtype=np.int64)
        self.kept: Bool[Tensor, "batch pos"] = torch.ones(0, 0, dtype=torch.bool)
        self.keys: dict[Site, Tensor] = {}
        self.shares: dict[int, list[_Share]] = {}

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Place the hooks for the duration of the block."""
        keys: list[tuple[Hook, Callable[[Tensor], None]]] = []
        outputs: list[tuple[Hook, Callable[[Tensor], Tensor]]] = []
        banks: list[Bank] = []
        for view in self.views:
            if view.bank is None:
                keys.append((view.keys_hook, self._on_keys(view.site)))
                outputs.append((view.output_hook, self._on_output(view)))
            elif view.bank not in banks:
                banks.append(view.bank)
                outputs.append((view.output_hook, self._on_bank_output(view.bank)))
        with ExitStack() as stack:
            stack.enter_context(frozen(self.lm))
            # The keys are what W reads, with the changes of applied interventions, and m is what W writes, before them.
            stack.enter_context(self.lm.hooks(keys))
            stack.enter_context(self.lm.hooks(outputs, first=True))
            for bank in banks:
                bank.watch(self._on_routed(bank), stack)
            stack.enter_context(torch.enable_grad())
            yield

    def read(
        self, batch: Batch, toxic: Int[Tensor, " batch"], neutral: Int[Tensor, " batch"], group: Int64[np.ndarray, " n"]
    ) -> None:
        """Run one batch of prefixes through the model."""
        self.group, self.kept = group, batch.real.clone()
        if self.skip_first:
            self.kept[:, 0] = False
        np.add.at(self.counts, group, 1)
        difference = log_difference(self.lm, batch, toxic, neutral)
        difference.sum().backward()
        self.total += difference.detach().cpu().double().sum().item()
        self.keys.clear()
        self.shares.clear()

    def _on_keys(self, site: Site) -> Callable[[Tensor], None]:
        def hook(a: Tensor) -> None:
            self.keys[site] = a.detach().reshape(*self.kept.shape, -1)

        return hook

    def _on_output(self, view: SiteView) -> Callable[[Tensor], Tensor]:
        def hook(m: Tensor) -> Tensor:
            m = with_gradient(m, lambda delta: self._reduce(view, delta))
            # Llama 4 adds the routed experts' outputs to that of the shared expert in place.
            return m.clone() if view.site.part == "shared_expert" else m

        return hook

    def _reduce(self, view: SiteView, delta: Tensor) -> None:
        a, kept = self.keys.pop(view.site), self.kept.to(delta.device)
        texts = kept.nonzero()[:, 0]
        self._add(view, texts, a[kept], delta.reshape(*kept.shape, -1)[kept])

    def _on_routed(self, bank: Bank) -> Callable[[Routed], None]:
        views = self.experts[id(bank)]

        def watch(routed: Routed) -> None:
            view = views.get(routed.expert)
            if view is None:
                return
            kept = self.kept.to(routed.keys.device).flatten()[routed.tokens]
            texts = routed.tokens[kept] // self.kept.shape[1]
            scale = routed.router.detach()[kept, None].float().clamp_min(1e-9) if routed.after else None
            share = _Share(view, texts, routed.keys.detach()[kept], routed.rows[kept], scale)
            self.shares.setdefault(id(bank), []).append(share)

        return watch

    def _on_bank_output(self, bank: Bank) -> Callable[[Tensor], Tensor]:
        def hook(m: Tensor) -> Tensor:
            return with_gradient(m, lambda delta: self._reduce_bank(bank, delta))

        return hook

    def _reduce_bank(self, bank: Bank, delta: Tensor) -> None:
        delta = delta.reshape(-1, delta.shape[-1]).float()
        for share in self.shares.pop(id(bank), ()):
            own = delta[share.rows]
            own = own if share.scale is None else own / share.scale
            self._add(share.view, share.texts, share.keys, before_changes(bank, share.view.site, own))

    def _add(
        self, view: SiteView, texts: Int[Tensor, " n"], keys: Float[Tensor, "n d_in"], delta: Float[Tensor, "n d_model"]
    ) -> None:
        """Add the values of a site at some tokens, from its keys and the gradients dD/dm."""
        W, baseline = view.W.float().to(delta.device), self.baseline[view.site].to(delta.device)
        values = (delta.float() @ W.T).mul_(keys.float() - baseline)
        per_text = torch.zeros(len(self.kept), device=values.device).index_add_(0, texts, values.sum(1))
        np.add.at(self.sites[view.site], self.group, per_text.cpu().double().numpy())
        self.units[view.site] += view.per_unit(values.sum(0)).cpu().double().numpy()

    def result(self, n_pairs: int) -> DifferenceStatistics:
        for units in self.units.values():
            units /= n_pairs
        return DifferenceStatistics(n_pairs, self.total / n_pairs, self.counts, self.sites, self.units)
