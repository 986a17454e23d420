"""A site in a model: its live weight, the hooks on its inputs and outputs, and its units."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .architectures import architecture, blocks_of
from .sites import Site

Hook = str | nn.Module  # name of a hook point, or a module whose output is hooked


@dataclass(frozen=True, eq=False)
class SiteView:
    """A linear map in a model that writes to the residual stream: m = keys @ W + bias.

    Attributes:
        site: name of the site.
        n_units: number of units: neurons of the MLP, or heads of the attention.
        weights: function that returns the current W and bias, since a model can be moved to another device or dtype.
        linear: module of `lm.hf` that holds W; None without `lm.hf`.
        norm: module of `lm.hf` between the map and the residual stream; None if the family has no such norm, or without
            `lm.hf`.
        norm_offset: offset of the norm, which multiplies by (norm_offset + its weight).
        has_norm: whether there is a norm between the map and the residual stream.
        keys_hook: hook for the keys [batch, pos, d_in]: `hook_post` of the MLP; for the attention `o.hook_in` of a
            bridge, or `hook_z` [batch, pos, head, d_head] of a HookedTransformer.
        output_hook: hook for m [batch, pos, d_model], before any norm.
        write_hook: hook for the term that is added to the residual stream: m, after the norm if there is one.
    """

    site: Site
    n_units: int
    weights: Callable[[], tuple[Tensor, Tensor | None]]
    linear: nn.Module | None
    norm: nn.Module | None
    norm_offset: float
    has_norm: bool
    keys_hook: Hook
    output_hook: Hook
    write_hook: Hook

    @property
    def W(self) -> Float[Tensor, "d_in d_model"]:
        """A live view of the weight; in-place changes change the model."""
        return self.weights()[0]

    @property
    def bias(self) -> Float[Tensor, " d_model"] | None:
        """The live bias, or None if the family has no bias there."""
        return self.weights()[1]

    @property
    def d_in(self) -> int:
        """Width of the keys."""
        return int(self.W.shape[0])

    @property
    def width(self) -> int:
        """Number of keys per unit: 1 for a neuron, d_head for a head."""
        return self.d_in // self.n_units

    @property
    def device(self) -> torch.device:
        """Device of the weight."""
        return self.W.device

    @property
    def writer(self) -> nn.Module | None:
        """The module of `lm.hf` whose output is added to the residual stream."""
        return self.linear if self.norm is None else self.norm

    def rows(self, unit: int) -> slice:
        """Return the rows of W that belong to a unit."""
        return slice(unit * self.width, (unit + 1) * self.width)

    def per_key(self, factors: Float[Tensor, " n_units"]) -> Float[Tensor, " d_in"]:
        """Repeat the factor of each unit for each of its keys."""
        return factors.repeat_interleave(self.width)

    def per_unit(self, keys: Float[Tensor, "*some d_in"]) -> Float[Tensor, "*some n_units"]:
        """Sum values over the keys of each unit."""
        return keys if self.width == 1 else keys.unflatten(-1, (self.n_units, self.width)).sum(-1)

    def biased(self) -> Iterator[Tensor]:
        """Yield the weight and, if there is a bias, the bias."""
        yield self.W
        if self.bias is not None:
            yield self.bias


def weights_of(linear: nn.Module) -> tuple[Float[Tensor, "d_in d_model"], Float[Tensor, " d_model"] | None]:
    """Return live views of a linear map's weight, [inputs, outputs], and of its bias, or None if it has no bias.

    GPT-2's Conv1D stores the weight as [inputs, outputs]; all other families store it transposed.
    """
    weight, bias = linear.get_parameter("weight"), linear.bias
    return weight if isinstance(linear, Conv1D) else weight.T, bias if isinstance(bias, Tensor) else None


def view_of(site: Site, hooked: Any, hf: Any, is_bridge: bool) -> SiteView:
    """Make the view of a site: find its weight, norm and hooks.

    Args:
        site: a site that the model has.
        hooked: the TransformerBridge or HookedTransformer.
        hf: the Hugging Face model with the same weights; None if there is only a HookedTransformer.
        is_bridge: whether `hooked` is a TransformerBridge.
    """
    mlp, block, cfg = site.part == "mlp", hooked.blocks[site.layer], hooked.cfg
    if hf is None:
        linear, norm, offset, has_norm = None, None, 0.0, bool(cfg.use_normalization_before_and_after)
        heads = cfg.n_heads

        def weights() -> tuple[Tensor, Tensor | None]:
            if mlp:
                return block.mlp.W_out, block.mlp.b_out
            return block.attn.W_O.view(-1, cfg.d_model), block.attn.b_O
    else:
        family, hf_block = architecture(hf.config.model_type), blocks_of(hf)[site.layer]
        path = family.norm(site.part)
        linear = hf_block.get_submodule(family.linear(site.part))
        norm = hf_block.get_submodule(path) if path else None
        offset, has_norm, heads = family.norm_offset, path is not None, hf.config.num_attention_heads
        weights = partial(weights_of, linear)
    prefix = f"blocks.{site.layer}"
    # A HookedTransformer has no hook point for m before a norm, so its modules are hooked instead.
    output: Hook = block.mlp if mlp else block.attn
    if is_bridge:
        output = f"{prefix}.mlp.out.hook_out" if mlp else f"{prefix}.attn.o.hook_out"
    attention_keys = f"{prefix}.attn.o.hook_in" if is_bridge else f"{prefix}.attn.hook_z"
    return SiteView(
        site,
        weights()[0].shape[0] if mlp else heads,
        weights,
        linear,
        norm,
        offset,
        has_norm,
        f"{prefix}.mlp.hook_post" if mlp else attention_keys,
        output,
        f"{prefix}.hook_mlp_out" if mlp else f"{prefix}.hook_attn_out",
    )
