"""The activations of a model that values are attributed to, and their mean over texts."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..models.banks import Routed
from ..models.batching import Row, groups_of_rows, pad
from ..models.loaded import LoadedModel
from ..models.site_view import Hook, SiteView
from ..models.sites import AnySite
from ..support.progress import track
from .moments import Moments
from .pair_batch import without_first


@dataclass(eq=False)
class Activation:
    """An activation in a model, and a constant that replaces it.

    Attributes:
        hook: hook for the activation [batch, pos, d]; for an expert, see `SiteView.bank`.
        constant: the constant [d], 0 at first.
        view: the site; None for the token embeddings.
        written: whether it is the term that the site adds to the residual stream.
    """

    hook: Hook
    constant: Float[Tensor, " d"]
    view: SiteView | None = None
    written: bool = False

    @classmethod
    def keys(cls, lm: LoadedModel, site: AnySite) -> "Activation":
        """The keys of a site: the activations of neurons, or z of heads; of an expert, times the router weights."""
        view = lm.at(site)
        return cls(view.keys_hook, torch.zeros(view.d_in), view)

    @classmethod
    def written_by(cls, lm: LoadedModel, site: AnySite) -> "Activation":
        """The term that a site adds to the residual stream, after its norm if a norm follows it."""
        view = lm.at(site)
        return cls(view.write_hook, torch.zeros(lm.d_model), view, written=True)

    @classmethod
    def embedding(cls, lm: LoadedModel) -> "Activation":
        """The token embeddings."""
        return cls(lm.embedding_hook, torch.zeros(lm.embedding.shape[1]))

    def of_routed(self, routed: Routed) -> Float[Tensor, "n d"]:
        """Return the activation of an expert at the tokens that are routed to it."""
        assert self.view is not None
        keys = routed.keys.detach().float()
        if not self.written:
            return keys
        share, bias = keys @ self.view.W.float(), self.view.bias
        return share if bias is None else share + routed.router.detach()[:, None].float() * bias.float()

    @contextmanager
    def watched(self, lm: LoadedModel, moments: Moments, kept: list[Bool[Tensor, "batch pos"]]) -> Iterator[None]:
        """Add the activation at the positions that `kept` holds to `moments`, within the block."""

        def add(rows: Tensor) -> None:
            moments.update(rows, torch.ones(len(rows), device=rows.device), len(rows))

        def on_values(x: Tensor) -> None:
            add(x.detach().reshape(*kept[0].shape, -1)[kept[0].to(x.device)])

        def on_routed(routed: Routed) -> None:
            if self.view is not None and routed.expert == self.view.site.expert:
                add(self.of_routed(routed)[kept[0].to(routed.keys.device).flatten()[routed.tokens]])

        with ExitStack() as stack:
            if self.view is None or self.view.bank is None:
                stack.enter_context(lm.hooks([(self.hook, on_values)]))
            else:
                self.view.bank.watch(on_routed, stack)
            yield


@torch.inference_mode()
def read_means(lm: LoadedModel, activations: Sequence[Activation], rows: Sequence[Row], *, skip_first: bool) -> None:
    """Set the constant of each activation to its mean over the tokens of some texts, in one pass."""
    kept: list[Tensor] = [torch.ones(0, 0, dtype=torch.bool)]
    moments = [Moments(len(activation.constant)) for activation in activations]
    with ExitStack() as stack:
        for activation, own in zip(activations, moments, strict=True):
            stack.enter_context(activation.watched(lm, own, kept))
        for index in track(groups_of_rows(lm, [len(row.ids) for row in rows]), "means over neutral texts"):
            chosen = [rows[i] for i in index]
            batch = pad(lm, [row.ids for row in chosen], index, "right", own=[row.own for row in chosen])
            kept[0] = without_first(batch.counted) if skip_first else batch.counted
            lm.forward_hidden(batch.ids, batch.mask)
    for activation, own in zip(activations, moments, strict=True):
        activation.constant = own.mean.float()
