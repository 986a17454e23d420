"""Read and change activations in the same way in both module trees of a model, `lm.hooked` and `lm.hf`."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .architectures import architecture
from .batching import batches
from .loaded import LoadedModel
from .site_view import Hook
from .sites import AnySite

Change = Callable[[Tensor], Tensor]
Pool = Literal["max", "mean"]


@dataclass(frozen=True)
class Place:
    """The place of an activation in a model.

    Attributes:
        hook: name of its hook point on `lm.hooked`, or a module of `lm.hooked` whose output it is.
        module: module of `lm.hf` whose input or output it is; None without `lm.hf`.
        before: whether it is the input of `module`, not the output.
        columns: its columns in the output of `module`, for families that store two matrices as one; None for all.
    """

    hook: Hook
    module: nn.Module | None
    before: bool = False
    columns: slice | None = None


def keys_of(lm: LoadedModel, site: AnySite) -> Place:
    """Return the place of a site's keys [..., d_in]: the inputs of W_out for an MLP, of W_O for an attention."""
    view = lm.at(site)
    return Place(view.keys_hook, view.linear, before=True)


def written_by(lm: LoadedModel, site: AnySite) -> Place:
    """Return the place of what a site adds to the residual stream [..., d_model]: m, after its norm if there is one."""
    view = lm.at(site)
    return Place(view.write_hook, view.writer)


def mlp_linears(lm: LoadedModel, layer: int) -> list[Place]:
    """Return the places of the outputs of an MLP's linear maps: of up, or of gate and up, and of W_out (m)."""
    family, block, view = architecture(lm.model_type), lm.block(layer), lm.at(layer)
    names = [f"blocks.{layer}.mlp.hook_pre", f"blocks.{layer}.mlp.hook_pre_linear"]
    modules = [block.get_submodule(path) for path in family.up]
    down = Place(view.output_hook, view.linear)
    if family.joint_up:
        halves = (slice(0, lm.d_mlp), slice(lm.d_mlp, 2 * lm.d_mlp))
        return [*(Place(name, modules[0], columns=half) for name, half in zip(names, halves, strict=True)), down]
    return [*(Place(name, module) for name, module in zip(names, modules, strict=False)), down]


def residual(lm: LoadedModel, layer: int) -> Place:
    """Return the place of the residual stream [..., d_model] after a block."""
    return Place(f"blocks.{layer}.hook_resid_post", None if lm.hf is None else lm.block(layer))


def change(lm: LoadedModel, place: Place, transform: Change, stack: ExitStack) -> None:
    """Change the activation at a place, on `lm.hooked` and on `lm.hf`, until the stack is closed.

    Args:
        lm: the model.
        place: place of the activation.
        transform: function from the activation [..., d] to its new value. The activation is cast to float32, and the
            new value is cast back to the original dtype.
        stack: removes the hooks when it is closed.
    """

    def rounded(x: Tensor) -> Tensor:
        return transform(x.float()).to(x.dtype)

    def on_columns(x: Tensor) -> Tensor:
        if place.columns is None:
            return rounded(x)
        x = x.clone()
        x[..., place.columns] = rounded(x[..., place.columns])
        return x

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        return (on_columns(output[0]), *output[1:]) if isinstance(output, tuple) else on_columns(output)

    def on_hooked(x: Tensor) -> Tensor:
        return rounded(x.flatten(2)).view_as(x) if x.ndim == 4 else rounded(x)  # z: [batch, pos, head, d_head]

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

    with lm.hooks([(place.hook, pooling_hook(i)) for i, place in enumerate(places)]):
        for batch in batches(lm, texts, max_length=max_length, describe=describe):
            kept = batch.real.clone()
            if skip_first:
                kept[:, 0] = kept.sum(1) == 1
            order += batch.index
            lm.forward_hidden(batch.ids, batch.mask)
    inverse = torch.argsort(torch.tensor(order))
    return [torch.cat(parts)[inverse] for parts in rows]
