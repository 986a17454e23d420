"""Places in a model whose activations interventions see and change, the same in both of its module trees."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .architectures import architecture
from .batching import batches
from .loaded import LoadedModel

Change = Callable[[Tensor], Tensor]
POOLS = ("max", "mean")


@dataclass(frozen=True)
class Site:
    """One place of one layer.

    Attributes:
        hook: name of the hook point on `lm.hooked`.
        module: the module of `lm.hf` whose input or output it is; None if there is no `lm.hf`.
        before: whether it is the module's input.
        part: which columns of it, where the family keeps two matrices in one; None for all.
    """

    hook: str
    module: nn.Module | None
    before: bool = False
    part: slice | None = None


def neurons(lm: LoadedModel, layer: int) -> Site:
    """The neurons' activations a (hook_post) [.., d_mlp], which W_out reads."""
    return Site(lm.neuron_hook(layer), None if lm.hf is None else lm.down_projection(layer), before=True)


def mlp_linears(lm: LoadedModel, layer: int) -> list[Site]:
    """The outputs of an MLP's linear maps: what goes into its non-linearity (gate and up apart), and m."""
    family, block = architecture(lm.model_type), lm.block(layer)
    names = [f"blocks.{layer}.mlp.hook_pre", f"blocks.{layer}.mlp.hook_pre_linear"]
    modules = [block.get_submodule(path) for path in family.up]
    down = Site(lm.output_hook(layer), lm.down_projection(layer))
    if family.joint_up:
        halves = (slice(0, lm.d_mlp), slice(lm.d_mlp, 2 * lm.d_mlp))
        return [*(Site(name, modules[0], part=half) for name, half in zip(names, halves, strict=True)), down]
    return [*(Site(name, module) for name, module in zip(names, modules, strict=False)), down]


def mlp_write(lm: LoadedModel, layer: int) -> Site:
    """What the MLP adds to the residual stream [.., d_model]: m, normed where the family does so."""
    return Site(lm.contribution_hook(layer), None if lm.hf is None else lm.contribution(layer))


def attention_write(lm: LoadedModel, layer: int) -> Site:
    """What the attention adds to the residual stream [.., d_model], normed where the family does so."""
    family = architecture(lm.model_type)
    return Site(f"blocks.{layer}.hook_attn_out",
                lm.block(layer).get_submodule(family.attention_norm or family.attention))


def residual(lm: LoadedModel, layer: int) -> Site:
    """The residual stream after a block [.., d_model]."""
    return Site(f"blocks.{layer}.hook_resid_post", None if lm.hf is None else lm.block(layer))


def change(lm: LoadedModel, site: Site, how: Change, stack: ExitStack) -> None:
    """Put `how` in force on the activations at a site, on `lm.hooked` and on `lm.hf`, until the stack is closed.

    `how` gets float32 whatever the model computes in; what it returns is rounded back.
    """
    def rounded(x: Tensor) -> Tensor:
        return how(x.float()).to(x.dtype)

    def on_part(x: Tensor) -> Tensor:
        if site.part is None:
            return rounded(x)
        x = x.clone()
        x[..., site.part] = rounded(x[..., site.part])
        return x

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        return (on_part(output[0]), *output[1:]) if isinstance(output, tuple) else on_part(output)

    if site.module is not None:
        if site.before:
            handle = site.module.register_forward_pre_hook(lambda module, args: (on_part(args[0]), *args[1:]))
        else:
            handle = site.module.register_forward_hook(after)
        stack.callback(handle.remove)
    stack.enter_context(lm.hooked.hooks(fwd_hooks=[(site.hook, lambda x, hook: rounded(x))]))


@torch.inference_mode()
def pooled(lm: LoadedModel, texts: Sequence[str], sites: Sequence[Site], how: str = "mean", *, skip_first: bool = True,
           max_length: int = 128, describe: str = "activations") -> list[Float[Tensor, "n_texts d"]]:
    """Pool the activations at every site over the real tokens of each text: one row a text, float32, on the CPU.

    Args:
        lm: the model as it is now.
        texts: at least one, none empty.
        sites: where to look.
        how: "max" or "mean".
        skip_first: leave the first position out, which can be an attention sink (texts of one token keep it).
        max_length: tokens read of each text.
        describe: label of the progress bar.
    """
    assert how in POOLS
    rows: list[list[Tensor]] = [[] for _ in sites]
    order: list[int] = []
    kept = torch.ones(0, 0, dtype=torch.bool)

    def see(at: int) -> Callable[..., None]:
        def hook(x: Tensor, hook: Any) -> None:
            x, real = x.view(*kept.shape, -1).float(), kept.to(x.device)
            if how == "max":
                rows[at].append(x.masked_fill(~real[..., None], -torch.inf).amax(1).cpu())
            else:
                weights = real.float() / real.sum(1, keepdim=True)
                rows[at].append(torch.bmm(weights[:, None], x)[:, 0].cpu())
        return hook

    with lm.hooked.hooks(fwd_hooks=[(site.hook, see(at)) for at, site in enumerate(sites)]):
        for batch in batches(lm, texts, max_length=max_length, describe=describe):
            kept = batch.real.clone()
            if skip_first:
                kept[:, 0] = kept.sum(1) == 1
            order += batch.index
            lm.forward_hidden(batch.ids, batch.mask)
    back = torch.argsort(torch.tensor(order))
    return [torch.cat(parts)[back] for parts in rows]
