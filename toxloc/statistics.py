"""The cache-diffing engine: sums collected inside hooks, one streaming pass per set of texts.

Nothing is cached: each hook reduces what it sees to sums of fixed size, so memory does not grow with the number
of texts. With `a` [pos, d_mlp] the activations of a layer's neurons and m = a @ W_out + b_out its output, a pass
collects over real tokens

* the mean and variance of every element of `a` and of `m`;
* G = dNLL/dW_out = sum of aᵀδ over tokens, with δ = dNLL/dm (the gradient of W_out without autograd ever building
  a weight gradient, and divided by the number of predicted tokens);
* C = E[a aᵀ] and S = E[δ δᵀ], the Kronecker factors of the curvature of W_out (Martens and Grosse 2015,
  arXiv:1503.05671).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from .batching import Batch, batches
from .errors import ToxlocError
from .model import LoadedModel
from .prompts import ContrastSet


class Moments:
    """Running mean and variance of every column of a stream of rows, in float64 (Chan, Golub, LeVeque 1983)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor = torch.zeros(())
        self.squares: Tensor = torch.zeros(())

    def update(self, rows: Float[Tensor, "n d"]) -> None:
        """Add rows."""
        n = rows.shape[0]
        if n == 0:
            return
        var, mean = torch.var_mean(rows.float(), dim=0, correction=0)
        mean, squares = mean.double().cpu(), var.double().cpu() * n
        if self.count == 0:
            self.count, self.mean, self.squares = n, mean, squares
            return
        total = self.count + n
        shift = mean - self.mean
        self.mean = self.mean + shift * (n / total)
        self.squares = self.squares + squares + shift**2 * (self.count * n / total)
        self.count = total

    @property
    def var(self) -> Float[Tensor, " d"]:
        """Variance of each column, divided by the count."""
        return self.squares / self.count


@dataclass
class TextStatistics:
    """What one pass over a set of texts found; lists have one entry a layer.

    Attributes:
        n_texts: texts read.
        n_tokens: tokens that entered the moments (real ones, without the first of a text if it was skipped).
        n_predicted: tokens that were predicted, and over which `nll`, G and S are averaged.
        nll: mean negative log-likelihood per predicted token, in nats.
        neurons: moments of a.
        outputs: moments of m.
        G: dNLL/dW_out, NLL the mean per token (without the first position's key if it was skipped).
        C: E[a aᵀ] over all real tokens, the first included.
        S: E[δ δᵀ] over all real tokens, δ the gradient of the summed NLL.
    """

    n_texts: int
    n_tokens: int
    n_predicted: int
    nll: float
    neurons: list[Moments]
    outputs: list[Moments]
    G: list[Float[Tensor, "d_mlp d_model"]]
    C: list[Float[Tensor, "d_mlp d_mlp"]]
    S: list[Float[Tensor, "d_model d_model"]]


def collect(lm: LoadedModel, texts: Sequence[str], *, gradients: bool = True, curvature: bool = False,
            moments: bool = True, skip_first: bool = True, max_length: int = 128,
            describe: str = "statistics") -> TextStatistics:
    """Gather the statistics of one set of texts in one pass.

    Args:
        lm: the model; left exactly as it was.
        texts: at least one, none empty.
        gradients: gather G (a backward pass as well; without it the unembedding is not even computed).
        curvature: gather C and S (a backward pass as well).
        moments: gather means and variances.
        skip_first: leave the first position out of the moments and of G. It can be an attention sink whose huge
            activations would be all that is seen. C and S always keep it, so that an edit pays for touching it.
        max_length: tokens read of each text.
        describe: label of the progress bar.

    Raises:
        ToxlocError: no texts, an empty text, or no text of two tokens while gradients are wanted.

    Example:
        >>> from toxloc import load_model
        >>> s = collect(load_model(), ["The sun is out."], curvature=True)
        >>> s.G[0].shape, s.S[0].shape
        (torch.Size([1024, 256]), torch.Size([256, 256]))
    """
    if not texts:
        raise ToxlocError("There are no texts to gather statistics from.")
    collector = _Collector(lm, gradients=gradients, curvature=curvature, moments=moments, skip_first=skip_first)
    with collector.hooked():
        for batch in batches(lm, texts, max_length=max_length, describe=describe):
            collector.read(batch)
    return collector.result(len(texts))


class _Collector:
    """The hooks of one pass and the sums they fill."""

    def __init__(self, lm: LoadedModel, *, gradients: bool, curvature: bool, moments: bool, skip_first: bool):
        self.lm, self.skip_first = lm, skip_first
        self.gradients, self.curvature, self.moments = gradients, curvature, moments
        self.backward = gradients or curvature
        layers = range(lm.n_layers)
        self.neurons, self.outputs = [Moments() for _ in layers], [Moments() for _ in layers]
        self.G = self._zeros(lm.d_mlp, lm.d_model) if gradients else []
        self.C = self._zeros(lm.d_mlp, lm.d_mlp) if curvature else []
        self.S = self._zeros(lm.d_model, lm.d_model) if curvature else []
        self.n_tokens = self.n_real = self.n_predicted = 0
        self.nll = 0.0
        self.real: Bool[Tensor, "batch pos"] = torch.ones(0, 0, dtype=torch.bool)
        self.kept = self.real
        self.keys: dict[int, Tensor] = {}

    def _zeros(self, *shape: int) -> list[Tensor]:
        return [torch.zeros(shape, device=self.lm.device) for _ in range(self.lm.n_layers)]

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Place the hooks for the duration of the block."""
        hooks: list[tuple[str, Callable[..., Any]]] = []
        for layer in range(self.lm.n_layers):
            hooks.append((self.lm.neuron_hook(layer), self._on_neurons(layer)))
            hooks.append((self.lm.output_hook(layer), self._on_output(layer)))
        with ExitStack() as stack:
            stack.enter_context(_frozen(self.lm))
            stack.enter_context(self.lm.hooked.hooks(fwd_hooks=hooks))
            stack.enter_context(torch.enable_grad() if self.backward else torch.inference_mode())
            yield

    def read(self, batch: Batch) -> None:
        """Run one batch through the model."""
        self.real = batch.real
        self.kept = self.real.clone()
        if self.skip_first:
            self.kept[:, 0] = False
        self.n_tokens += int(self.kept.sum())
        self.n_real += int(self.real.sum())
        if not self.backward:
            self.lm.forward_hidden(batch.ids, batch.mask)
            return
        loss, predicted = summed_nll(self.lm.forward(batch.ids, batch.mask), batch.ids, batch.mask)
        self.nll += loss.item()
        self.n_predicted += predicted
        if predicted:
            loss.backward()
        self.keys.clear()

    # Hooks see canonical names, not the alias asked for, so the layer comes in by closure.
    def _on_neurons(self, layer: int) -> Callable[..., None]:
        def hook(a: Tensor, hook: Any) -> None:
            a = a.detach().view(*self.real.shape, -1)
            if self.moments:
                self.neurons[layer].update(a[self.kept])
            if self.backward:
                self.keys[layer] = a
        return hook

    def _on_output(self, layer: int) -> Callable[..., Tensor | None]:
        def hook(m: Tensor, hook: Any) -> Tensor | None:
            if self.moments:
                self.outputs[layer].update(m.detach().view(*self.real.shape, -1)[self.kept])
            if not self.backward:
                return None
            # Weights are frozen, so the graph begins at the first MLP's output and holds nothing before it. `m` is
            # returned because a hook may be shown a reshaped view, which is not what the model goes on with.
            if not m.requires_grad:
                m = m.detach().requires_grad_(True)
            m.register_hook(lambda delta: self._reduce(layer, delta))
            return m
        return hook

    def _reduce(self, layer: int, delta: Tensor) -> None:
        a = self.keys.pop(layer)
        delta = delta.view(*self.real.shape, -1)
        if self.gradients:
            self.G[layer].addmm_(a[self.kept].float().T, delta[self.kept].float())
        if self.curvature:
            a, delta = a[self.real].float(), delta[self.real].float()
            self.C[layer].addmm_(a.T, a)
            self.S[layer].addmm_(delta.T, delta)

    def result(self, n_texts: int) -> TextStatistics:
        if self.backward and self.n_predicted == 0:
            raise ToxlocError("No text has two tokens, so there is nothing to predict; give longer texts.")
        n = max(1, self.n_predicted)
        for sums, count in ((self.G, n), (self.C, self.n_real), (self.S, n)):
            for matrix in sums:
                matrix /= count
        return TextStatistics(n_texts, self.n_tokens, self.n_predicted, self.nll / n, self.neurons, self.outputs,
                              self.G, self.C, self.S)


def summed_nll(logits: Float[Tensor, "batch pos d_vocab"], ids: Int[Tensor, "batch pos"],
               mask: Int[Tensor, "batch pos"]) -> tuple[Float[Tensor, ""], int]:
    """Negative log-likelihood in nats summed over the real tokens after the first, and how many those are.

    Needs padding on the right.
    """
    targets = mask[:, 1:].bool()
    loss = F.cross_entropy(logits[:, :-1][targets].float(), ids[:, 1:][targets], reduction="sum")
    return loss, int(targets.sum())


@contextmanager
def _frozen(lm: LoadedModel) -> Iterator[None]:
    """Switch weight gradients off, and back to what they were."""
    trained = [p for tree in (lm.hf, lm.hooked) for p in tree.parameters() if p.requires_grad]
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
        C: second moment of the keys on neutral text, one [d_mlp, d_mlp] a layer; empty if not gathered.
        S: second moment of the output gradients on neutral text, one [d_model, d_model] a layer.
    """

    toxic: TextStatistics
    neutral: TextStatistics
    C: list[Float[Tensor, "d_mlp d_mlp"]]
    S: list[Float[Tensor, "d_model d_model"]]

    def G(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        """Gradient of the contrast NLL_T - NLL_N by a layer's W_out."""
        return self.toxic.G[layer] - self.neutral.G[layer]


def collect_contrast(lm: LoadedModel, pairs: ContrastSet, *, gradients: bool = True, curvature: bool = False,
                     more_neutral: Sequence[str] = (), skip_first: bool = True,
                     max_length: int = 128) -> ContrastStatistics:
    """Gather both sides of a contrast set; with `curvature`, C and S from its neutral side and `more_neutral`.

    Args:
        lm: the model.
        pairs: the contrast set.
        gradients: gather G.
        curvature: gather C and S.
        more_neutral: further neutral texts for C and S alone, weighted by their tokens.
        skip_first: see `collect`.
        max_length: tokens read of each text.

    Raises:
        ToxlocError: as `collect` does.
    """
    toxic = collect(lm, pairs.toxic, gradients=gradients, skip_first=skip_first, max_length=max_length,
                    describe="toxic texts")
    neutral = collect(lm, pairs.neutral, gradients=gradients, curvature=curvature, skip_first=skip_first,
                      max_length=max_length, describe="neutral texts")
    C, S = neutral.C, neutral.S
    if curvature and more_neutral:
        more = collect(lm, more_neutral, gradients=False, curvature=True, moments=False, max_length=max_length,
                       describe="neutral text for the curvature")
        share = more.n_predicted / (more.n_predicted + neutral.n_predicted)
        C = [torch.lerp(x, y, share) for x, y in zip(neutral.C, more.C, strict=True)]
        S = [torch.lerp(x, y, share) for x, y in zip(neutral.S, more.S, strict=True)]
    return ContrastStatistics(toxic, neutral, C, S)
