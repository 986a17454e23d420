"""A site in a model: its live weight, the hooks on its inputs and outputs, and its units."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .banks import Bank
from .hooked_tree import HookedTree, Point
from .quantized import QuantizedMap, device_of, is_quantized
from .sites import FEED_FORWARD, Site
from .structure import Writer, shape_of, text_config

Hook = str | Point  # name of a hook point, or what a module reads or returns


@dataclass(frozen=True)
class Reader:
    """The outputs of a linear map through which an MLP reads the residual stream.

    Attributes:
        hook: hook for the outputs.
        module: module of `lm.hf` that holds the map.
        columns: columns of the module's output, for a module that holds gate and up; None for all.
    """

    hook: Hook
    module: nn.Module
    columns: slice | None = None

    @property
    def n_outputs(self) -> int:
        """Number of outputs."""
        if self.columns is not None:
            return int(self.columns.stop - self.columns.start)
        shape = shape_of(self.module)
        assert shape is not None
        return shape[1]


@dataclass(frozen=True, eq=False)
class SiteView:
    """A linear map in a model that writes to the residual stream: m = keys @ W + bias.

    The keys of a routed expert are its neurons' activations times the router weights, on the tokens routed to it.

    Attributes:
        site: name of the site.
        n_units: number of units: neurons of an MLP or expert, heads of an attention, channels of a mixer.
        weights: function that returns the current W and bias, since a model can be moved to another device or dtype.
        linear: module of `lm.hf` that holds W; None for an expert, and without `lm.hf`.
        norm: module of `lm.hf` between the map and the residual stream; None if there is no such norm, or without
            `lm.hf`.
        norm_offset: offset of the norm, which multiplies by (norm_offset + its weight).
        has_norm: whether there is a norm between the map and the residual stream.
        keys_hook: hook for the keys [batch, pos, d_in]: `hook_post` of an MLP, `o.hook_in` of an attention of a bridge,
            or `hook_z` [batch, pos, head, d_head] of a HookedTransformer. For an expert, see `bank`.
        output_hook: hook for m [batch, pos, d_model], before any norm; for an expert, the sum over all experts.
        write_hook: hook for the term that is added to the residual stream: m, after the norm if there is one.
        bank: the experts of this block in the hooked model, of which the site is one; None for other sites.
        hf_bank: the same in `lm.hf`.
        sum_hook: hook for the sum over all experts of the block that is added to the residual stream; "" for other
            sites.
        sum_module: module of `lm.hf` that returns this sum; None for other sites.
        readers: the outputs of the maps through which an MLP reads the residual stream: up, or gate and up.
        quantized: the map, if its weight is quantized. `W` is then a copy, so that changes of it change nothing.
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
    bank: Bank | None = None
    hf_bank: Bank | None = None
    sum_hook: Hook = ""
    sum_module: nn.Module | None = None
    readers: tuple[Reader, ...] = ()
    quantized: QuantizedMap | None = None

    @property
    def W(self) -> Float[Tensor, "d_in d_model"]:
        """A live view of the weight; in-place changes change the model, unless its weight is quantized."""
        return self.weights()[0]

    @property
    def bias(self) -> Float[Tensor, " d_model"] | None:
        """The live bias, or None if the family has no bias there."""
        return self.weights()[1]

    @property
    def d_in(self) -> int:
        """Width of the keys."""
        return int(self.W.shape[0] if self.quantized is None else self.quantized.linear.in_features)  # type: ignore[arg-type]

    @property
    def width(self) -> int:
        """Number of keys per unit: 1 for a neuron or channel, d_head for a head."""
        return self.d_in // self.n_units

    @property
    def device(self) -> torch.device:
        """Device of the weight."""
        return self.W.device if self.quantized is None else device_of(self.quantized.linear)

    @property
    def writer(self) -> nn.Module | None:
        """The module of `lm.hf` whose output is added to the residual stream."""
        return self.linear if self.norm is None else self.norm

    def rows(self, unit: int) -> slice:
        """Return the rows of W that belong to a unit."""
        return slice(unit * self.width, (unit + 1) * self.width)

    def per_key(self, factors: Shaped[Tensor, " n_units"]) -> Shaped[Tensor, " d_in"]:
        """Repeat the factor or the choice of each unit for each of its keys."""
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


def views_of_writer(layer: int, writer: Writer, hf: Any, tree: HookedTree) -> Iterator[SiteView]:
    """Yield the views of a writing map: one, or one per expert.

    Args:
        layer: number of the block.
        writer: the map.
        hf: the Hugging Face model.
        tree: the hooked model, whose modules have the same paths.
    """
    if writer.part == "expert":
        yield from _expert_views(layer, writer, hf, tree)
        return
    linear = hf.get_submodule(writer.path)
    norm = hf.get_submodule(writer.norm) if writer.norm else None
    quantized = QuantizedMap(linear, tree.module(writer.path)) if is_quantized(linear) else None
    weights = partial(weights_of, linear) if quantized is None else quantized.weights
    shape = shape_of(linear)
    assert shape is not None
    d_in = shape[0]
    yield SiteView(
        Site(layer, writer.part),
        _n_heads(hf, writer, d_in) if writer.part == "attention" else d_in,
        weights,
        linear,
        norm,
        0.0 if norm is None else norm_offset(norm),
        norm is not None,
        tree.reads(writer.path),
        tree.returns(writer.path),
        tree.returns(writer.norm or writer.path),
        readers=tuple(_readers(writer, hf, tree, d_in)),
        quantized=quantized,
    )


def _readers(writer: Writer, hf: Any, tree: HookedTree, d_in: int) -> Iterator[Reader]:
    halves = tree.halves(writer.container) if len(writer.readers) == 1 else None
    if halves is None:
        for path in writer.readers:
            yield Reader(tree.returns(path), hf.get_submodule(path))
        return
    joint = hf.get_submodule(writer.readers[0])
    for point, start in zip(halves, (0, d_in), strict=True):
        yield Reader(point, joint, slice(start, start + d_in))


def _expert_views(layer: int, writer: Writer, hf: Any, tree: HookedTree) -> Iterator[SiteView]:
    def bank_in(modules: Callable[[str], nn.Module]) -> Bank:
        parent = writer.path.rsplit(".", 1)[0]
        router = next((name for name in ("router", "gate") if hasattr(hf.get_submodule(parent), name)), None)
        return Bank(modules(writer.path), modules(f"{parent}.{router}") if router else None)

    bank, hooked_bank = bank_in(hf.get_submodule), bank_in(tree.module)
    output, total = Point(hooked_bank.module), writer.norm or writer.container
    for expert in range(bank.n_experts):
        weights = partial(bank.weights, expert)
        yield SiteView(
            Site(layer, "expert", expert),
            int(weights()[0].shape[0]),
            weights,
            None,
            None,
            0.0,
            False,
            output,
            output,
            output,
            bank=hooked_bank,
            hf_bank=bank,
            sum_hook=tree.returns(total),
            sum_module=hf.get_submodule(total),
        )


def _n_heads(hf: Any, writer: Writer, d_in: int) -> int:
    """Return the number of heads of an attention; if its keys are not heads side by side, the number of keys."""
    config, module = text_config(hf), hf.get_submodule(writer.container)
    if getattr(config, "kv_lora_rank", None):  # latent attention: values have their own width
        width = getattr(config, "v_head_dim", None)
    else:
        heads = getattr(config, "num_attention_heads", None) or d_in
        width = getattr(module, "head_dim", None) or d_in // (heads if isinstance(heads, int) else d_in)
    return d_in // width if isinstance(width, int) and width and d_in % width == 0 else d_in


@torch.no_grad()
def norm_offset(norm: nn.Module) -> float:
    """Return the offset of a norm that multiplies by (offset + its weight), by trying it: 0, or 1 as in Gemma."""
    weight = getattr(norm, "weight", None)
    if not isinstance(weight, Tensor) or isinstance(norm, nn.LayerNorm) or weight.is_meta:
        return 0.0
    x = torch.randn(len(weight), generator=torch.Generator().manual_seed(0)).to(weight)
    gain = norm(x[None])[0].float() / (x.float() / x.float().pow(2).mean().sqrt())
    return float((gain - weight.float()).mean() > 0.5)


def view_of_hooked_transformer(site: Site, hooked: Any) -> SiteView:
    """Make the view of a site of a HookedTransformer without a Hugging Face model, which has MLPs and attentions."""
    return _hooked_transformer_view(site, hooked, None)


def views_of_hooked_transformer(writer: Writer, layer: int, hf: Any, hooked: Any) -> SiteView:
    """Make the view of a site of a HookedTransformer that shares its weights with a Hugging Face model."""
    return _hooked_transformer_view(Site(layer, writer.part), hooked, (hf, writer))


def _hooked_transformer_view(site: Site, hooked: Any, known: tuple[Any, Writer] | None) -> SiteView:
    mlp, block, cfg, prefix = site.part in FEED_FORWARD, hooked.blocks[site.layer], hooked.cfg, f"blocks.{site.layer}"

    def weights() -> tuple[Tensor, Tensor | None]:
        if mlp:
            return block.mlp.W_out, block.mlp.b_out
        return block.attn.W_O.view(-1, cfg.d_model), block.attn.b_O

    linear, norm, has_norm = None, None, bool(cfg.use_normalization_before_and_after)
    readers: list[Reader] = []
    if known is not None:
        hf, writer = known
        linear = hf.get_submodule(writer.path)
        norm = hf.get_submodule(writer.norm) if writer.norm else None
        has_norm, weights = norm is not None, partial(weights_of, linear)
        points, d_in = (f"{prefix}.mlp.hook_pre", f"{prefix}.mlp.hook_pre_linear"), int(weights()[0].shape[0])
        modules = [hf.get_submodule(path) for path in writer.readers]
        if len(modules) == 1 and cfg.gated_mlp:  # one map holds gate and up
            readers = [Reader(points[i], modules[0], slice(i * d_in, (i + 1) * d_in)) for i in range(2)]
        else:
            readers = [Reader(point, module) for point, module in zip(points, modules, strict=False)]
    return SiteView(
        site,
        weights()[0].shape[0] if mlp else cfg.n_heads,
        weights,
        linear,
        norm,
        0.0 if norm is None else norm_offset(norm),
        has_norm,
        f"{prefix}.mlp.hook_post" if mlp else f"{prefix}.attn.hook_z",
        Point(block.mlp if mlp else block.attn),  # HookedTransformer has no hook point for m before a norm
        f"{prefix}.hook_mlp_out" if mlp else f"{prefix}.hook_attn_out",
        readers=tuple(readers),
    )
