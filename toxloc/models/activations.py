"""Read and change activations in the same way in both module trees of a model, `lm.hooked` and `lm.hf`."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import ToxlocError
from .banks import Bank, Routed
from .batching import batches
from .hooked_tree import first_of, with_first
from .loaded import LoadedModel
from .site_view import Hook, SiteView
from .sites import FEED_FORWARD, AnySite

Change = Callable[[Tensor], Tensor]
Pool = Literal["max", "mean"]


@dataclass(frozen=True)
class Place:
    """The place of an activation in a model.

    Attributes:
        hook: name of its hook point on `lm.hooked`, or what a module of `lm.hooked` reads or returns.
        module: module of `lm.hf` whose input or output it is; None without `lm.hf`.
        before: whether it is the input of `module`, not the output.
        columns: its columns in the output of `module`, for families that store two matrices as one; None for all.
        expert: number of the expert whose neurons (with `before`) or whose output it is; None for other places.
        banks: the experts of the block, in `lm.hooked` and in `lm.hf`.
    """

    hook: Hook
    module: nn.Module | None
    before: bool = False
    columns: slice | None = None
    expert: int | None = None
    banks: tuple[Bank, ...] = ()


def keys_of(lm: LoadedModel, site: AnySite) -> Place:
    """Return the place of a site's keys [..., d_in]: the inputs of W_out for an MLP, of W_O for an attention."""
    view = lm.at(site)
    return _of_expert(view, before=True) or Place(view.keys_hook, view.linear, before=True)


def written_by(lm: LoadedModel, site: AnySite) -> Place:
    """Return the place of what a site adds to the residual stream [..., d_model]: m, after its norm if there is one."""
    view = lm.at(site)
    return _of_expert(view, before=False) or Place(view.write_hook, view.writer)


def _of_expert(view: SiteView, before: bool) -> Place | None:
    """Return the place of an expert's neurons, or of its output before the router weights; None for other sites."""
    if view.bank is None or view.hf_bank is None:
        return None
    return Place(view.keys_hook, None, before, expert=view.site.expert, banks=(view.bank, view.hf_bank))


def feed_forward_output(lm: LoadedModel, layer: int) -> Place:
    """Return the place of what the feed-forward part of a block adds to the residual stream [..., d_model].

    For a mixture of experts it is the sum of all experts. A block without MLP and experts gives its last site.
    """
    sites = [site for site in lm.sites() if site.layer == layer]
    chosen = [site for site in sites if site.part in FEED_FORWARD] or sites[-1:]
    if not chosen:
        raise ToxlocError(f"Layer {layer} of {lm.name} has no map that writes to the residual stream.")
    view = lm.at(chosen[0])
    return written_by(lm, chosen[0]) if view.bank is None else Place(view.sum_hook, view.sum_module)


def mlp_linears(lm: LoadedModel, site: AnySite) -> list[Place]:
    """Return the places of the outputs of an MLP's linear maps: of up, or of gate and up, and of W_out (m).

    For an expert, return the place of its neurons, since its linear maps have no separate modules.
    """
    lm.check_hf("reading the linear maps of an MLP")
    view = lm.at(site)
    if view.bank is not None:
        return [keys_of(lm, site)]
    places = [Place(reader.hook, reader.module, columns=reader.columns) for reader in view.readers]
    return [*places, Place(view.output_hook, view.linear)]


def residual(lm: LoadedModel, layer: int) -> Place:
    """Return the place of the residual stream [..., d_model] after a block."""
    return Place(lm.block_hook(layer), None if lm.hf is None else lm.block(layer))


def change(lm: LoadedModel, place: Place, transform: Change, stack: ExitStack) -> None:
    """Change the activation at a place, on `lm.hooked` and on `lm.hf`, until the stack is closed.

    Args:
        lm: the model.
        place: place of the activation.
        transform: function from the activation [..., d] to its new value. A 16-bit activation is cast to float32,
            and the new value is cast back to the original dtype.
        stack: removes the hooks when it is closed.
    """

    def rounded(x: Tensor) -> Tensor:
        return transform(x.to(torch.promote_types(x.dtype, torch.float32))).to(x.dtype)

    def on_columns(x: Tensor) -> Tensor:
        if place.columns is None:
            return rounded(x)
        x = x.clone()
        x[..., place.columns] = rounded(x[..., place.columns])
        return x

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        return with_first(output, on_columns(first_of(output)))

    def on_hooked(x: Tensor) -> Tensor:
        return rounded(x.flatten(2)).view_as(x) if x.ndim == 4 else rounded(x)  # z: [batch, pos, head, d_head]

    if place.expert is not None:
        for bank in place.banks:
            (bank.change_keys if place.before else bank.change_output)(place.expert, transform, stack)
        return
    if place.module is not None:
        if place.before:
            handle = place.module.register_forward_pre_hook(lambda module, args: (on_columns(args[0]), *args[1:]))
        else:
            handle = place.module.register_forward_hook(after)
        stack.callback(handle.remove)
    stack.enter_context(lm.hooks([(place.hook, on_hooked)]))


@torch.inference_mode()
def pooled(
    lm: LoadedModel,
    texts: Sequence[str],
    places: Sequence[Place],
    pool: Pool = "mean",
    *,
    skip_first: bool = True,
    max_length: int = 128,
    describe: str = "activations",
) -> list[Float[Tensor, "n_texts d"]]:
    """Pool the activations at every place over the real tokens of each text.

    Args:
        lm: the model, with the interventions that are applied to it.
        texts: at least one text, none empty.
        places: places of the activations.
        pool: "max" or "mean".
        skip_first: leave out the first position, which can be an attention sink. Texts of a single token keep it.
        max_length: number of tokens to read of each text.
        describe: label of the progress bar.

    Returns:
        One float32 tensor [n_texts, d] per place, on the CPU.
    """
    rows: list[list[Tensor]] = [[] for _ in places]
    order: list[int] = []
    kept = torch.ones(0, 0, dtype=torch.bool)

    def pooling_hook(index: int) -> Callable[[Tensor], None]:
        def hook(x: Tensor) -> None:
            x, real = x.reshape(*kept.shape, -1).float(), kept.to(x.device)
            if pool == "max":
                rows[index].append(x.masked_fill(~real[..., None], -torch.inf).amax(1).cpu())
            else:
                weights = real.float() / real.sum(1, keepdim=True)
                rows[index].append(torch.bmm(weights[:, None], x)[:, 0].cpu())

        return hook

    def watch_bank(bank: Bank, wanted: dict[int, int], stack: ExitStack) -> None:
        def watch(routed: Routed) -> None:
            if (index := wanted.get(routed.expert)) is None:
                return
            real = kept.to(routed.keys.device)
            chosen = real.flatten()[routed.tokens]
            keys, text = routed.keys[chosen].float(), (routed.tokens // real.shape[1])[chosen]
            pooled_keys = rows[index][-1] = keys.new_zeros(len(real), keys.shape[1])
            if pool == "max":  # 0 where no token of a text is routed to the expert
                pooled_keys.scatter_reduce_(0, text[:, None].expand_as(keys), keys, "amax", include_self=False)
            else:
                pooled_keys.index_add_(0, text, keys).div_(real.sum(1, keepdim=True))
            rows[index][-1] = pooled_keys.cpu()

        bank.watch(watch, stack)

    experts: dict[int, tuple[Bank, dict[int, int]]] = {}
    for i, place in enumerate(places):
        if place.expert is not None:
            experts.setdefault(id(place.banks[0]), (place.banks[0], {}))[1][place.expert] = i
    hooks = [(place.hook, pooling_hook(i)) for i, place in enumerate(places) if place.expert is None]
    with ExitStack() as stack:
        stack.enter_context(lm.hooks(hooks))
        for bank, wanted in experts.values():
            watch_bank(bank, wanted, stack)
        for batch in batches(lm, texts, max_length=max_length, describe=describe):
            kept = batch.counted.clone()
            if skip_first:
                kept[:, 0] &= kept.sum(1) == 1
            order += batch.index
            for bank, wanted in experts.values():  # an expert to which no token is routed keeps zeros
                for expert, i in wanted.items():
                    rows[i].append(torch.zeros(len(kept), bank.weights(expert)[0].shape[0]))
            lm.forward_hidden(batch.ids, batch.mask)
    inverse = torch.argsort(torch.tensor(order))
    return [torch.cat(parts)[inverse] for parts in rows]
