"""The cache-diffing engine: sums collected inside hooks, one streaming pass per set of texts.

Nothing is cached: each hook reduces what it sees to sums of fixed size, so memory does not grow with the number
of texts. With `a` [pos, d_mlp] the activations of a layer's neurons and m = a @ W_out + b_out its output, a pass
collects over real tokens

* the mean and variance of every element of `a`;
* what every small group of texts contributed to the layer's scores (`contributions`);
* G = dNLL/dW_out = sum of aᵀδ over tokens, with δ = dNLL/dm (the gradient of W_out without autograd ever building
  a weight gradient, and divided by the number of predicted tokens);
* C = E[a aᵀ] and S = E[δ δᵀ], the Kronecker factors of the curvature of W_out (Martens and Grosse 2015,
  arXiv:1503.05671).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ..errors import ToxlocError
from ..models.batching import Batch, batches
from ..models.likelihood import predicting, sampled, targets, token_nll
from ..models.loaded import AnyModel, LoadedModel
from ..texts.contrast import ContrastSet
from .contributions import Contributions, Gatherer, deal
from .moments import Moments

FISHERS = ("empirical", "sampled")


@dataclass
class TextStatistics:
    """What one pass over a set of texts found; lists have one entry a layer, C and S one for each layer asked for.

    Attributes:
        n_texts: texts read.
        n_tokens: tokens that entered the moments (real ones, without the first of a text if it was skipped).
        n_predicted: tokens that were predicted, and over which `nll`, G and S are averaged.
        nll: mean negative log-likelihood per predicted token, in nats.
        neurons: moments of a.
        contributions: sums over small groups of texts; None without moments.
        G: dNLL/dW_out, NLL the mean per token (without the first position's key if it was skipped).
        C: E[a aᵀ] over all real tokens, the first included.
        S: E[δ δᵀ] over all real tokens, δ the gradient of the summed NLL.
    """

    n_texts: int
    n_tokens: int
    n_predicted: int
    nll: float
    neurons: list[Moments]
    contributions: Contributions | None
    G: list[Float[Tensor, "d_mlp d_model"]]
    C: dict[int, Float[Tensor, "d_mlp d_mlp"]]
    S: dict[int, Float[Tensor, "d_model d_model"]]


def collect(lm: LoadedModel, texts: Sequence[str], *, gradients: bool = True, curvature: bool = False,
            output_curvature: bool = False, fisher: str = "empirical", layers: Sequence[int] | None = None,
            moments: bool = True, peaks: bool = False,
            group: Int64[np.ndarray, " n_texts"] | None = None, skip_first: bool = True, max_length: int = 128,
            describe: str = "statistics") -> TextStatistics:
    """Gather the statistics of one set of texts in one pass.

    Args:
        lm: the model; left exactly as it was.
        texts: at least one, none empty.
        gradients: gather G (a backward pass as well; without it the unembedding is not even computed).
        curvature: gather C and S (a backward pass as well).
        output_curvature: gather S alone, which is much smaller than C.
        fisher: "empirical" takes the gradients of the texts' own tokens, "sampled" those of tokens drawn from the
            model's predictions, which makes S the factor of the true Fisher information (and G and nll those of the
            drawn tokens).
        layers: whose C and S are gathered; by default all. C takes d_mlp² numbers a layer.
        moments: gather means, variances and contributions.
        peaks: with the contributions, the largest activation of every neuron in every text (to a temporary file).
        group: the group of every text for the contributions; by default dealt at random (`contributions.deal`).
        skip_first: leave the first position out of the moments and of G. It can be an attention sink whose huge
            activations would be all that is seen. C and S always keep it, so that an edit pays for touching it.
        max_length: tokens read of each text.
        describe: label of the progress bar.

    Raises:
        ToxlocError: no texts, an empty text, no text of two tokens while gradients are wanted, an unknown fisher.

    Example:
        >>> from toxloc import load_model
        >>> s = collect(load_model(), ["The sun is out."], curvature=True)
        >>> s.G[0].shape, s.S[0].shape
        (torch.Size([1024, 256]), torch.Size([256, 256]))
    """
    if not texts:
        raise ToxlocError("There are no texts to gather statistics from.")
    if fisher not in FISHERS:
        raise ToxlocError(f"Unknown fisher {fisher!r}; choose one of {', '.join(FISHERS)}.")
    if moments and group is None:
        group = deal(len(texts), len(texts), paired=True)[0]
    gatherer = Gatherer(lm, group, gradients=gradients, peaks=peaks) if moments and group is not None else None
    collector = _Collector(lm, gatherer, gradients=gradients, curvature=curvature, output_curvature=output_curvature,
                           draw=fisher == "sampled", layers=layers, skip_first=skip_first)
    with collector.hooked():
        for batch in batches(lm, texts, max_length=max_length, describe=describe):
            collector.read(batch)
    return collector.result(len(texts))


class _Collector:
    """The hooks of one pass and the sums they fill."""

    def __init__(self, lm: LoadedModel, gatherer: Gatherer | None, *, gradients: bool, curvature: bool,
                 output_curvature: bool, draw: bool, layers: Sequence[int] | None, skip_first: bool):
        self.lm, self.gatherer, self.skip_first = lm, gatherer, skip_first
        self.gradients, self.output_curvature = gradients, curvature or output_curvature
        self.backward = gradients or self.output_curvature
        self.normed = lm.has_post_norm
        self.neurons = [Moments() for _ in range(lm.n_layers)]
        self.G = [self._zero(i, lm.d_mlp, lm.d_model) for i in range(lm.n_layers if gradients else 0)]
        curved = range(lm.n_layers) if layers is None else layers
        self.C = {i: self._zero(i, lm.d_mlp, lm.d_mlp) for i in curved if curvature}
        self.S = {i: self._zero(i, lm.d_model, lm.d_model) for i in curved if self.output_curvature}
        self.generator = torch.Generator().manual_seed(0) if draw else None
        self.n_tokens = self.n_real = self.n_predicted = self.n_kept = 0
        self.nll = 0.0
        self.real: Bool[Tensor, "batch pos"] = torch.ones(0, 0, dtype=torch.bool)
        self.weights: Float[Tensor, "batch pos"] = torch.ones(0, 0)
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}

    def _zero(self, layer: int, *shape: int) -> Tensor:
        return torch.zeros(shape, device=self.lm.device_of(layer))

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Place the hooks for the duration of the block."""
        hooks: list[tuple[str, Callable[..., Any]]] = []
        for layer in range(self.lm.n_layers):
            hooks.append((self.lm.neuron_hook(layer), self._on_neurons(layer)))
            hooks.append((self.lm.output_hook(layer), self._on_output(layer)))
            if self.normed and self.gradients:
                hooks.append((self.lm.contribution_hook(layer), self._on_contribution(layer)))
        with ExitStack() as stack:
            stack.enter_context(_frozen(self.lm))
            stack.enter_context(self.lm.hooked.hooks(fwd_hooks=hooks))
            stack.enter_context(torch.enable_grad() if self.backward else torch.inference_mode())
            yield

    def read(self, batch: Batch) -> None:
        """Run one batch through the model."""
        self.real = batch.real
        kept = self.real.clone()
        if self.skip_first:
            kept[:, 0] = False
        self.weights = kept.float()
        self.n_kept = int(kept.sum())
        self.n_tokens += self.n_kept
        self.n_real += int(self.real.sum())
        if self.gatherer:
            self.gatherer.begin(batch.index, kept, batch.mask[:, 1:].sum(1).float())
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
        self.seen.clear()

    # Hooks see canonical names, not the alias asked for, so the layer comes in by closure.
    def _on_neurons(self, layer: int) -> Callable[..., None]:
        def hook(a: Tensor, hook: Any) -> None:
            a = a.detach().view(*self.real.shape, -1)
            if self.gatherer:
                self.neurons[layer].update(a.view(-1, a.shape[-1]), self.weights.to(a.device).view(-1), self.n_kept)
                self.gatherer.see_neurons(a)
            if self.backward:
                self.seen[layer] = (a, a)
        return hook

    def _on_output(self, layer: int) -> Callable[..., Tensor | None]:
        def hook(m: Tensor, hook: Any) -> Tensor | None:
            outputs = m.detach().view(*self.real.shape, -1)
            if self.gatherer:
                self.gatherer.see_outputs(layer, outputs)
            if not self.backward:
                return None
            self.seen[layer] = (self.seen[layer][0], outputs)
            # Weights are frozen, so the graph begins at the first MLP's output and holds nothing before it. `m` is
            # returned because a hook may be shown a reshaped view, which is not what the model goes on with.
            if not m.requires_grad:
                m = m.detach().requires_grad_(True)
            m.register_hook(lambda delta: self._reduce(layer, delta))
            return m
        return hook

    def _on_contribution(self, layer: int) -> Callable[..., None]:
        def hook(c: Tensor, hook: Any) -> None:
            own = c.detach()
            c.register_hook(lambda delta: self._credit(layer, own, delta))
        return hook

    def _credit(self, layer: int, own: Tensor, delta: Tensor) -> None:
        if self.gatherer:
            shape, weights = (*self.real.shape, -1), self.weights.to(delta.device)
            self.gatherer.see_contribution(layer, own.view(shape), delta.view(shape).float() * weights[..., None])

    def _reduce(self, layer: int, delta: Tensor) -> None:
        a, m = self.seen.pop(layer)
        delta = delta.view(*self.real.shape, -1).float()
        if self.gradients:
            # No copy of `a` is cut to the tokens that count: at the others the gradient is set to 0 (padding has none).
            counted = delta * self.weights.to(delta.device)[..., None]
            a = a.float()
            self.G[layer].addmm_(a.view(-1, a.shape[-1]).T, counted.view(-1, counted.shape[-1]))
            if self.gatherer:
                self.gatherer.see_gradients(layer, a, counted)
                if not self.normed:
                    bias = self.lm.b_out(layer)
                    self.gatherer.see_contribution(layer, m if bias is None else m - bias, counted)
        if layer in self.C:
            a = a[self.real.to(a.device)].float()
            self.C[layer].addmm_(a.T, a)
        if layer in self.S:
            delta = delta.view(-1, delta.shape[-1])
            self.S[layer].addmm_(delta.T, delta)

    def result(self, n_texts: int) -> TextStatistics:
        if self.backward and self.n_predicted == 0:
            raise ToxlocError("No text has two tokens, so there is nothing to predict; give longer texts.")
        n = max(1, self.n_predicted)
        for sums, count in ((self.G, n), (self.C.values(), self.n_real), (self.S.values(), n)):
            for matrix in sums:
                matrix /= count
        return TextStatistics(n_texts, self.n_tokens, self.n_predicted, self.nll / n, self.neurons,
                              self.gatherer.found if self.gatherer else None, self.G, self.C, self.S)


@contextmanager
def _frozen(lm: LoadedModel) -> Iterator[None]:
    """Switch weight gradients off, and back to what they were."""
    trained = [p for tree in (lm.hf, lm.hooked) if tree is not None for p in tree.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)


@dataclass
class ContrastStatistics:
    """The statistics of a contrast set, and the curvature on neutral text, of which every method takes its part.

    Attributes:
        toxic: pass over the toxic texts.
        neutral: pass over the neutral texts.
        paired: whether groups of the same number on both sides hold the two halves of the same pairs.
        C: second moment of the keys on neutral text, one [d_mlp, d_mlp] a layer; empty if not gathered.
        S: second moment of the output gradients on neutral text, one [d_model, d_model] a layer; likewise.
    """

    toxic: TextStatistics
    neutral: TextStatistics
    paired: bool
    C: dict[int, Float[Tensor, "d_mlp d_mlp"]]
    S: dict[int, Float[Tensor, "d_model d_model"]]

    def G(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        """Gradient of the contrast NLL_T - NLL_N by a layer's W_out."""
        return self.toxic.G[layer] - self.neutral.G[layer]


def collect_contrast(lm: AnyModel, pairs: ContrastSet, *, gradients: bool = True, curvature: bool = False,
                     reliance: bool = False, peaks: bool = False, more_neutral: Sequence[str] = (),
                     fisher: str = "empirical", layers: Sequence[int] | None = None, moments: bool = True,
                     skip_first: bool = True, max_length: int = 128) -> ContrastStatistics:
    """Gather both sides of a contrast set; with `curvature`, C and S from its neutral side and `more_neutral`.

    Args:
        lm: the model.
        pairs: the contrast set.
        gradients: gather G.
        curvature: gather C and S.
        reliance: gather S of the toxic side too, which the score `combined` needs.
        peaks: gather the largest activations of every text, which `auroc` needs.
        more_neutral: further neutral texts for C and S alone, weighted by their tokens.
        fisher: "empirical" or "sampled", see `collect`; with "sampled" the neutral side is read twice.
        layers: whose C and S are gathered; by default all.
        moments: gather means, variances and contributions, which scores need and TRNE does not.
        skip_first: see `collect`.
        max_length: tokens read of each text.

    Raises:
        ToxlocError: as `collect` does.
    """
    lm = LoadedModel.of(lm)
    groups = deal(len(pairs.toxic), len(pairs.neutral), pairs.paired)
    how: dict[str, Any] = {"gradients": gradients, "moments": moments, "peaks": peaks, "skip_first": skip_first,
                           "max_length": max_length}
    curved: dict[str, Any] = {"curvature": curvature, "layers": layers, "fisher": fisher, "max_length": max_length}
    apart = curvature and fisher == "sampled"  # G is the gradient of the texts' own tokens in any case
    toxic = collect(lm, pairs.toxic, group=groups[0], output_curvature=reliance, describe="toxic texts", **how)
    neutral = collect(lm, pairs.neutral, group=groups[1], curvature=curvature and not apart,
                      layers=layers, describe="neutral texts", **how)
    parts = [] if apart or not curvature else [neutral]
    rest = [*(pairs.neutral if apart else ()), *more_neutral]
    if curvature and rest:
        parts.append(collect(lm, rest, gradients=False, moments=False, describe="neutral text for the curvature",
                             **curved))
    C, S = ({layer: _pooled([(one.n_predicted, getattr(one, factor)[layer]) for one in parts])
             for layer in (getattr(parts[0], factor) if parts else ())} for factor in "CS")
    return ContrastStatistics(toxic, neutral, pairs.paired, C, S)


def _pooled(parts: Sequence[tuple[int, Tensor]]) -> Tensor:
    """Mean weighted by tokens."""
    total = sum(count for count, _ in parts)
    pooled: Tensor = parts[0][1] if len(parts) == 1 else sum(count / total * M for count, M in parts)  # type: ignore[assignment]
    return pooled
