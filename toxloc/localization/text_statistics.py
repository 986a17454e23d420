"""Statistics of activations and gradients, summed inside hooks in one streaming pass per set of texts.

Nothing is cached: each hook reduces its input to sums of fixed size, so memory does not grow with the number of texts.
A site of the model computes m = a @ W + b from its keys `a` [pos, d_in]: the activations of an MLP's neurons, or the
outputs z of an attention's heads. For every site, a pass collects over real tokens:

* the mean and variance of every element of `a`;
* the contribution of every small group of texts to the site's scores (`contributions`);
* G = dNLL/dW = sum of aᵀδ over tokens, divided by the number of predicted tokens, with δ = dNLL/dm. This is the
  gradient with respect to W, computed without autograd ever building a weight gradient;
* C = E[a aᵀ] and S = E[δ δᵀ], the Kronecker factors of the curvature of W (Martens and Grosse 2015, arXiv:1503.05671).

A routed expert of a mixture of experts is read at the tokens that are routed to it. Its keys are its neurons'
activations times the router weight of the token, so that m is its share of the block's output.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ..errors import ToxlocError
from ..models.banks import Bank, Routed
from ..models.batching import Batch, batches
from ..models.likelihood import predicting, sampled, targets, token_nll
from ..models.loaded import LoadedModel
from ..models.site_view import Hook, SiteView
from ..models.sites import AnySite, BySite, Site, sites_of
from ..texts.drawing import check_texts
from .contributions import Contributions, Gatherer, random_groups
from .moments import Moments

Fisher = Literal["empirical", "sampled"]
FISHERS: tuple[str, ...] = get_args(Fisher)


@dataclass
class TextStatistics:
    """The result of one pass over a set of texts.

    Attributes:
        n_texts: number of texts read.
        n_tokens: number of tokens that entered the moments (real tokens, without the first of each text if
            `skip_first`).
        n_predicted: number of predicted tokens, over which `nll`, G and S are averaged.
        nll: mean negative log-likelihood per predicted token, in nats.
        keys: moments of a, by site; their count is 0 if moments were not gathered.
        contributions: sums over small groups of texts; None without moments.
        routed: number of tokens that count and are routed to an expert, by expert; empty without experts.
        G: dNLL/dW [d_in, d_model] by site, for the mean NLL per predicted token (without the key of the first position
            if `skip_first`).
        C: E[a aᵀ] over all real tokens, including the first, by site; of an expert, over those that are routed to it.
        S: E[δ δᵀ] by site: the sum over all real tokens divided by `n_predicted`, with δ the gradient of the summed
            NLL.
    """

    n_texts: int
    n_tokens: int
    n_predicted: int
    nll: float
    keys: BySite[Moments]
    contributions: Contributions | None
    routed: BySite[int]
    G: BySite[Float[Tensor, "_d_in d_model"]]
    C: BySite[Float[Tensor, "_d_in _d_in"]]
    S: BySite[Float[Tensor, "d_model d_model"]]


def collect(
    lm: LoadedModel,
    texts: Sequence[str],
    *,
    gradients: bool = True,
    curvature: bool = False,
    output_curvature: bool = False,
    fisher: Fisher = "empirical",
    sites: Iterable[AnySite] | None = None,
    curved: Iterable[AnySite] | None = None,
    moments: bool = True,
    peaks: bool = False,
    group: Int64[np.ndarray, " n_texts"] | None = None,
    skip_first: bool = True,
    max_length: int = 128,
    describe: str = "statistics",
) -> TextStatistics:
    """Gather the statistics of one set of texts in one pass.

    Args:
        lm: the model, which is left unchanged.
        texts: at least one text, none empty.
        gradients: gather G, which needs a backward pass. Without a backward pass the unembedding is not computed.
        curvature: gather C and S, which needs a backward pass.
        output_curvature: gather S, and C only for sites whose units are wider than one key (heads). S is much smaller
            than the C of an MLP.
        fisher: "empirical" uses the gradients of the texts' tokens. "sampled" uses the gradients of tokens sampled from
            the model's predictions: S is then the factor of the true Fisher information, and G and nll are those of the
            sampled tokens.
        sites: sites to gather statistics of; by default every MLP and expert.
        curved: sites whose C and S are gathered; by default all of `sites`. C stores d_in² numbers per site.
        moments: gather means, variances and contributions.
        peaks: with the contributions, gather the largest activation of every unit in every text (in a temporary file).
        group: group of each text for the contributions; by default random (`contributions.random_groups`).
        skip_first: leave the first position out of the moments and of G. It can be an attention sink, whose huge
            activations would dominate them. C and S always include it, so that the cost of an edit counts it.
        max_length: number of tokens read from each text.
        describe: label of the progress bar.

    Raises:
        ToxlocError: no texts, an empty text, no sites, an unknown site or fisher, or no text of two tokens if there is
            a backward pass.

    Example:
        >>> from toxloc import load_model
        >>> s = collect(load_model(), ["The sun is out."], curvature=True)
        >>> s.G[0].shape, s.S[0].shape
        (torch.Size([1024, 256]), torch.Size([256, 256]))
    """
    texts = check_texts(texts)
    if not texts:
        raise ToxlocError("There are no texts to gather statistics from; give at least one text.")
    if fisher not in FISHERS:
        raise ToxlocError(f"Unknown fisher {fisher!r}; choose one of {', '.join(FISHERS)}.")
    if moments and group is None:
        group = random_groups(len(texts), len(texts), paired=True)[0]
    views = [lm.at(site) for site in (lm.sites_of_choice("mlp") if sites is None else sites_of(sites))]
    if not views:
        raise ToxlocError(
            "There are no sites to gather statistics of; give sites, or leave sites= out for every layer's MLP."
        )
    curved_sites = {view.site for view in views} if curved is None else set(sites_of(curved))
    gatherer = Gatherer(lm, views, group, gradients=gradients, peaks=peaks) if moments and group is not None else None
    collector = _Collector(
        lm,
        views,
        gatherer,
        gradients=gradients,
        curvature=curvature,
        curved=curved_sites,
        output_curvature=output_curvature,
        draw=fisher == "sampled",
        skip_first=skip_first,
    )
    with collector.hooked():
        for batch in batches(lm, texts, max_length=max_length, gradients=collector.backward, describe=describe):
            collector.read(batch)
    return collector.result(len(texts))


class _Collector:
    """The hooks of one pass and the sums that they accumulate."""

    def __init__(
        self,
        lm: LoadedModel,
        views: Sequence[SiteView],
        gatherer: Gatherer | None,
        *,
        gradients: bool,
        curvature: bool,
        curved: set[Site],
        output_curvature: bool,
        draw: bool,
        skip_first: bool,
    ):
        self.lm, self.views, self.gatherer, self.skip_first = lm, views, gatherer, skip_first
        self.banks: dict[int, dict[int, SiteView]] = {}  # the experts to read, by id(bank) and number
        for view in views:
            if view.bank is not None and view.site.expert is not None:
                self.banks.setdefault(id(view.bank), {})[view.site.expert] = view
        self.gradients, self.output_curvature = gradients, curvature or output_curvature
        self.backward = gradients or self.output_curvature
        self.keys = BySite({view.site: Moments(view.d_in) for view in views})
        self.routed = BySite({view.site: 0 for view in views if view.bank})
        self.n_read = dict.fromkeys(self.routed, 0)  # real tokens routed to each expert, including the first
        d = lm.d_model
        self.G = BySite({v.site: _zero(v, v.d_in, d) for v in views if gradients})
        self.C = BySite(
            {
                v.site: _zero(v, v.d_in, v.d_in)
                for v in views
                if v.site in curved and (curvature or (output_curvature and v.width > 1))
            }
        )
        self.S = BySite({v.site: _zero(v, d, d) for v in views if v.site in curved and self.output_curvature})
        self.generator = torch.Generator().manual_seed(0) if draw else None
        self.n_tokens = self.n_real = self.n_predicted = self.n_kept = 0
        self.nll = 0.0
        self.real: Bool[Tensor, "batch pos"] = torch.ones(0, 0, dtype=torch.bool)
        self.weights: Float[Tensor, "batch pos"] = torch.ones(0, 0)
        self.seen_routed: dict[int, list[_Share]] = {}
        self.seen_keys: dict[Site, Tensor] = {}
        self.seen_outputs: dict[Site, Tensor] = {}

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Place the hooks for the duration of the block."""
        hooks: list[tuple[Hook, Callable[[Tensor], Tensor | None]]] = []
        keys: list[tuple[Hook, Callable[[Tensor], None]]] = []
        banks = []
        for view in self.views:
            if view.bank is not None:
                if view.bank not in banks:
                    banks.append(view.bank)
                    hooks.append((view.output_hook, self._on_bank_output(view.bank)))
                continue
            keys.append((view.keys_hook, self._on_keys(view)))
            hooks.append((view.output_hook, self._on_output(view)))
            if view.has_norm and self.gradients:
                hooks.append((view.write_hook, self._on_write(view)))
        with ExitStack() as stack:
            stack.enter_context(frozen(self.lm))
            # The keys are what W reads, with the changes of applied interventions, and m is what W writes, before them.
            stack.enter_context(self.lm.hooks(keys))
            stack.enter_context(self.lm.hooks(hooks, first=True))
            for bank in banks:
                bank.watch(self._on_routed(bank), stack)
            stack.enter_context(torch.enable_grad() if self.backward else torch.inference_mode())
            yield

    def read(self, batch: Batch) -> None:
        """Run one batch through the model."""
        self.real = batch.counted
        kept = self.real.clone()
        if self.skip_first:
            kept[:, 0] = False
        self.weights = kept.float()
        self.n_kept = int(kept.sum())
        self.n_tokens += self.n_kept
        self.n_real += int(self.real.sum())
        if self.gatherer:
            self.gatherer.begin(batch.index, kept, batch.own[:, 1:].sum(1).float())
        if not self.backward:
            self.lm.forward_hidden(batch.ids, batch.mask)
            return
        hidden, token = predicting(self.lm, batch), targets(batch)
        if len(token):
            if self.generator is not None:
                token = sampled(self.lm, hidden, self.generator)
            loss = token_nll(self.lm, hidden, token).sum()
            loss.backward()
            self.nll += loss.item()
            self.n_predicted += len(token)
        self.seen_routed.clear()
        self.seen_keys.clear()
        self.seen_outputs.clear()

    def _on_routed(self, bank: Bank) -> Callable[[Routed], None]:
        views = self.banks[id(bank)]

        def watch(routed: Routed) -> None:
            view = views.get(routed.expert)
            if view is None:
                return
            device = routed.keys.device
            real = self.real.to(device).flatten()[routed.tokens]
            tokens = routed.tokens[real]
            kept = self.weights.to(device).flatten()[tokens] > 0
            keys, router = routed.keys.detach()[real], routed.router.detach()[real]
            texts = tokens // self.real.shape[1]
            n_kept = int(kept.sum())
            self.routed[view.site] += n_kept
            self.n_read[view.site] += len(tokens)
            if self.gatherer:
                self.keys[view.site].update(keys, kept.float(), n_kept)
                self.gatherer.see_routed(view, texts, kept, router, keys)
            if self.backward:
                scale = router[:, None].float().clamp_min(1e-9) if routed.after else None
                share = _Share(view, texts, kept, keys.float(), routed.rows[real], scale)
                self.seen_routed.setdefault(id(bank), []).append(share)

        return watch

    def _on_bank_output(self, bank: Bank) -> Callable[[Tensor], Tensor | None]:
        def hook(m: Tensor) -> Tensor | None:
            if not self.backward:
                return None
            return with_gradient(m, lambda delta: self._reduce_bank(bank, delta))

        return hook

    def _reduce_bank(self, bank: Bank, delta: Tensor) -> None:
        delta = delta.reshape(-1, delta.shape[-1]).float()
        for share in self.seen_routed.pop(id(bank), ()):
            site, own = share.view.site, delta[share.rows]
            if share.scale is not None:
                own = own / share.scale
            own = before_changes(bank, site, own)
            if self.gradients:
                counted = own * share.kept[:, None]
                self.G[site].addmm_(share.keys.T, counted)
                if self.gatherer:
                    self.gatherer.see_routed_gradients(share.view, share.texts, share.keys, counted)
            if site in self.C:
                self.C[site].addmm_(share.keys.T, share.keys)
            if site in self.S:
                self.S[site].addmm_(own.T, own)

    def _on_keys(self, view: SiteView) -> Callable[[Tensor], None]:
        def hook(a: Tensor) -> None:
            a = a.detach().reshape(*self.real.shape, -1)
            if self.gatherer:
                self.keys[view.site].update(a.reshape(-1, a.shape[-1]), self.weights.to(a.device).view(-1), self.n_kept)
                self.gatherer.see_keys(view, a)
            if self.backward:
                self.seen_keys[view.site] = a

        return hook

    def _on_output(self, view: SiteView) -> Callable[[Tensor], Tensor | None]:
        def hook(m: Tensor) -> Tensor | None:
            outputs = m.detach().reshape(*self.real.shape, -1)
            if self.gatherer:
                self.gatherer.see_outputs(view.site, outputs)
            if not self.backward:
                return None
            self.seen_outputs[view.site] = outputs
            m = with_gradient(m, lambda delta: self._reduce(view, delta))
            # Llama 4 adds the routed experts' outputs to that of the shared expert in place.
            return m.clone() if view.site.part == "shared_expert" else m

        return hook

    def _on_write(self, view: SiteView) -> Callable[[Tensor], None]:
        def hook(c: Tensor) -> None:
            written = c.detach()
            c.register_hook(lambda delta: self._credit(view, written, delta))

        return hook

    def _credit(self, view: SiteView, written: Tensor, delta: Tensor) -> None:
        if self.gatherer:
            shape, weights = (*self.real.shape, -1), self.weights.to(delta.device)
            self.gatherer.see_contribution(
                view.site, written.reshape(shape), delta.reshape(shape).float() * weights[..., None]
            )

    def _reduce(self, view: SiteView, delta: Tensor) -> None:
        site = view.site
        a, m = self.seen_keys.pop(site), self.seen_outputs.pop(site)
        delta = delta.reshape(*self.real.shape, -1).float()
        if self.gradients:
            # A gradient of 0 at tokens that do not count saves a copy of `a` without them (it is 0 at padding).
            counted = delta * self.weights.to(delta.device)[..., None]
            a = a.float()
            self.G[site].addmm_(a.reshape(-1, a.shape[-1]).T, counted.reshape(-1, counted.shape[-1]))
            if self.gatherer:
                self.gatherer.see_gradients(site, a, counted)
                if not view.has_norm:
                    bias = view.bias
                    self.gatherer.see_contribution(site, m if bias is None else m - bias, counted)
        if site in self.C:
            a = a[self.real.to(a.device)].float()
            self.C[site].addmm_(a.T, a)
        if site in self.S:
            delta = delta.reshape(-1, delta.shape[-1])
            self.S[site].addmm_(delta.T, delta)

    def result(self, n_texts: int) -> TextStatistics:
        if self.backward and self.n_predicted == 0:
            raise ToxlocError("No text has two tokens, so there is nothing to predict; give longer texts.")
        n = max(1, self.n_predicted)
        for sums, count in ((self.G, n), (self.C, self.n_real), (self.S, n)):
            for site, matrix in sums.items():
                matrix /= max(1, self.n_read[site]) if sums is self.C and site in self.n_read else count
        return TextStatistics(
            n_texts,
            self.n_tokens,
            self.n_predicted,
            self.nll / n,
            self.keys,
            self.gatherer.sums if self.gatherer else None,
            self.routed,
            self.G,
            self.C,
            self.S,
        )


@dataclass(frozen=True)
class _Share:
    """An expert's share of one batch: the text, the keys and the row of the bank's output of each real token.

    `kept` says whether the token counts; `scale` is what the gradient at the bank's output is divided by.
    """

    view: SiteView
    texts: Tensor
    kept: Tensor
    keys: Tensor
    rows: Tensor
    scale: Tensor | None


def before_changes(bank: Bank, site: Site, delta: Tensor) -> Tensor:
    """Convert the gradient with respect to an expert's output to that before the changes of applied interventions.

    All such changes are linear, up to a constant, so they commute with the router weight.
    """
    for expert, transform in reversed(bank.on_outputs):
        if expert == site.expert:
            delta = torch.func.vjp(transform, torch.zeros_like(delta))[1](delta)[0]
    return delta


def _zero(view: SiteView, *shape: int) -> Tensor:
    return torch.zeros(shape, device=view.device)


def with_gradient(m: Tensor, read: Callable[[Tensor], None]) -> Tensor:
    """Return the output of a part as a tensor in the graph; `read` gets its gradient when a loss is differentiated.

    Weights are frozen, so the graph begins at the first part's output and holds nothing before it. A hook on the output
    returns this tensor, because a hook may receive a reshaped view, which is not the tensor that the model uses next.
    """
    if not m.requires_grad:
        m = m.detach().requires_grad_(True)
    m.register_hook(read)
    return m


@contextmanager
def frozen(lm: LoadedModel) -> Iterator[None]:
    """Switch weight gradients off for the duration of the block."""
    trained = [p for tree in (lm.hf, lm.hooked) if tree is not None for p in tree.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)
