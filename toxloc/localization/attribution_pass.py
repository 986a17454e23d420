"""A pass over pairs that attributes the log-probability difference D to the activations of sites, to first order.

Let x be an activation and x' what replaces it. The value of an element is dD/dx (x - x'), which estimates how much D
falls by the replacement. One forward and one backward pass per batch give the values of all sites.

With integrated gradients, dD/dx is the mean of the gradients at inputs between the counterfactual input and the
original one (EAP-IG, Hanna et al. 2024, arXiv:2403.17806). In the counterfactual input, the token embeddings are
replaced at the same positions and in the same way as the activations. The inputs lie at the centres of equal steps
(midpoint rule); x - x' is still that of the original input.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from ..models.banks import Bank, Routed
from ..models.loaded import LoadedModel
from ..models.site_view import Hook
from .activation import Activation
from .pair_batch import PairBatch
from .text_statistics import before_changes, frozen, with_gradient

Add = Callable[[Activation, Float[Tensor, "pairs d"]], None]


@dataclass(frozen=True)
class _Share:
    """An expert's share of one batch: for each token that is replaced, its row of the batch and what falls away.

    Attributes:
        activation: the activation of the expert.
        texts: row of the batch of each token.
        change: its activation minus the constant.
        rows: row of the bank's output of each token.
        scale: what the gradient at the bank's output is divided by.
    """

    activation: Activation
    texts: Int[Tensor, " n"]
    change: Float[Tensor, "n d"]
    rows: Int[Tensor, " n"]
    scale: Float[Tensor, "n 1"] | None


class AttributionPass:
    """The hooks of one pass.

    Args:
        lm: the model.
        activations: the activations of sites.
        add: takes the values of each pair of a batch, summed over positions. With integrated gradients, it is called
            once per step and gets the share of that step.
        embedding: the token embeddings, for integrated gradients.
        steps: number of inputs at which gradients are taken; 0 for the gradient at the original input.
    """

    def __init__(
        self,
        lm: LoadedModel,
        activations: Sequence[Activation],
        add: Add,
        embedding: Activation | None = None,
        steps: int = 0,
    ):
        self.lm, self.activations, self.add = lm, activations, add
        self.embedding, self.steps = embedding, steps
        self._own: dict[Activation, Tensor] = {}  # values at the original input
        self._shares: dict[int, list[_Share]] = {}  # by id(bank)
        self._input: Tensor | None = None  # the embeddings of the current step
        self._batch: PairBatch | None = None

    @property
    def batch(self) -> PairBatch:
        """The current batch."""
        assert self._batch is not None
        return self._batch

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Place the hooks for the duration of the block."""
        hooks: list[tuple[Hook, Callable[[Tensor], Tensor]]] = []
        of_bank: dict[int, tuple[Bank, Hook, list[Activation]]] = {}
        for activation in self.activations:
            view = activation.view
            assert view is not None
            if view.bank is None:
                hooks.append((activation.hook, self._on_values(activation)))
            else:
                of_bank.setdefault(id(view.bank), (view.bank, view.output_hook, []))[2].append(activation)
        with ExitStack() as stack:
            stack.enter_context(frozen(self.lm))
            if self.embedding is not None:
                stack.enter_context(self.lm.hooks([(self.embedding.hook, self._on_embedding)]))
            stack.enter_context(self.lm.hooks(hooks))  # after the changes of applied interventions
            for bank, output, experts in of_bank.values():
                stack.enter_context(self.lm.hooks([(output, self._on_bank_output(bank))], first=True))
                bank.watch(self._on_routed(bank, experts), stack)
            yield

    def read(self, batch: PairBatch) -> Float64[Tensor, " n"]:
        """Attribute D of some pairs, and return D."""
        self._batch = batch
        if not self.steps:
            difference = self._attribute(batch)
        else:
            with torch.no_grad():
                difference = batch.difference()
            batch, embedding = batch.without_donors(), self.embedding
            assert embedding is not None
            embedded = self._own[embedding]
            change = batch.replacement.change(embedded, embedding.constant)
            for step in range(self.steps):
                missing = 1 - (step + 0.5) / self.steps
                self._input = (embedded - missing * change).to(embedded.dtype)[: batch.n_rows]
                self._attribute(batch)
            self._input = None
        self._own.clear()
        return difference

    def _attribute(self, batch: PairBatch) -> Float64[Tensor, " n"]:
        with torch.enable_grad():
            difference = batch.difference()
            difference.sum().backward()
        self._shares.clear()
        return difference.detach()

    def _on_embedding(self, x: Tensor) -> Tensor:
        assert self.embedding is not None
        if self._input is None:
            self._own[self.embedding] = x.detach()
            return x
        return self._input.view_as(x)

    def _on_values(self, activation: Activation) -> Callable[[Tensor], Tensor]:
        def hook(x: Tensor) -> Tensor:
            if self._input is None:
                self._own[activation] = x.detach().reshape(*self.batch.tokens.ids.shape, -1)
            if torch.is_grad_enabled():
                x = with_gradient(x, lambda gradient: self._reduce(activation, gradient))
            # Some models add to an output in place, as Llama 4 adds the routed experts' outputs to the shared expert's.
            return x.clone() if activation.written else x

        return hook

    def _reduce(self, activation: Activation, gradient: Tensor) -> None:
        values = self.batch.replacement.change(self._own[activation], activation.constant)
        gradient = gradient.reshape(-1, *values.shape[1:])  # without the donors, if there are steps
        self._add(activation, values[: len(gradient)].mul_(gradient).sum(1))

    def _add(self, activation: Activation, per_row: Float[Tensor, "rows d"]) -> None:
        self.add(activation, self.batch.per_pair(per_row) / max(1, self.steps))

    def _on_routed(self, bank: Bank, experts: Sequence[Activation]) -> Callable[[Routed], None]:
        def watch(routed: Routed) -> None:
            where = self.batch.replacement.where.to(routed.keys.device)
            kept = where.flatten()[routed.tokens]
            texts = routed.tokens[kept] // where.shape[1]
            scale = routed.router.detach()[kept, None].float().clamp_min(1e-9) if routed.after else None
            for activation in experts:
                if activation.view is not None and activation.view.site.expert == routed.expert:
                    change = activation.of_routed(routed)[kept] - activation.constant.to(routed.keys.device)
                    share = _Share(activation, texts, change, routed.rows[kept], scale)
                    self._shares.setdefault(id(bank), []).append(share)

        return watch

    def _on_bank_output(self, bank: Bank) -> Callable[[Tensor], Tensor]:
        def hook(m: Tensor) -> Tensor:
            return with_gradient(m, lambda delta: self._reduce_bank(bank, delta)) if torch.is_grad_enabled() else m

        return hook

    def _reduce_bank(self, bank: Bank, delta: Tensor) -> None:
        delta = delta.reshape(-1, delta.shape[-1]).float()
        for share in self._shares.pop(id(bank), ()):
            own, view = delta[share.rows], share.activation.view
            assert view is not None
            own = before_changes(bank, view.site, own if share.scale is None else own / share.scale)
            gradient = own if share.activation.written else own @ view.W.float().T
            per_row = gradient.new_zeros(len(self.batch.tokens.ids), share.change.shape[1])
            self._add(share.activation, per_row.index_add_(0, share.texts, share.change * gradient))
