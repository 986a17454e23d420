"""Attention patterns: the weights with which the heads of an attention read positions, and the values that they read.

The pattern of a head has a row for each position (query) and a column for each position that it reads (source). The
Hugging Face model computes it, with the eager attention of its class, because fused attention does not return it.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from ..errors import ToxlocError
from .batching import Batch
from .loaded import LoadedModel
from .sites import Site

AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]  # the type of `eager_attention_forward`


@dataclass(frozen=True)
class Attended:
    """What the heads of one attention read in a batch.

    Attributes:
        weights: weight of each source at each query; it is 0 for sources after the query. The weights of a query sum to
            1, or to less if the attention has learned sinks, as in gpt-oss.
        values: what the sources contain; neighbouring heads share a value in grouped-query attention. None if the
            outputs of the heads are not the sums of weights times values (a gate or a norm follows), or if the class of
            the model does not show the values.
    """

    weights: Float[Tensor, "batch heads query source"]
    values: Float[Tensor, "batch value_heads source d_head"] | None

    def values_of(self, head: int) -> Float[Tensor, "batch source d_head"]:
        """Return the values that a head reads; there must be values."""
        assert self.values is not None
        return self.values[:, head * self.values.shape[1] // self.weights.shape[1]]


Read = Callable[[Site, Attended], None]
Forward = Callable[[Batch], None]


@contextmanager
def attention_computed_by(hf: Any, function: AttentionFunction) -> Iterator[None]:
    """Within the block, a Hugging Face model computes attention with a function.

    A model whose class does not support this uses its eager attention instead.
    """
    if not hf._supports_attention_backend:
        with _attention_set(hf, "eager"):
            yield
        return
    name = f"toxloc_{id(function)}_{id(hf)}"  # a name per model, so that the end of a block does not affect others
    with ExitStack() as stack:
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, eager_mask)
        for registry in (AttentionInterface, AttentionMaskInterface):
            stack.callback(registry._global_mapping.pop, name)  # transformers has no function that unregisters
        stack.enter_context(_attention_set(hf, name))
        yield


@contextmanager
def _attention_set(hf: Any, name: str) -> Iterator[None]:
    before = hf.config._attn_implementation
    try:
        hf.set_attn_implementation(name)
        yield
    finally:
        hf.set_attn_implementation(before)


@contextmanager
def watched_attention(lm: LoadedModel, sites: Sequence[Site], read: Read) -> Iterator[Forward]:
    """Show the patterns of some attentions, one attention after another, so that only one is in memory at a time.

    Args:
        lm: the model, with the interventions that are applied to it.
        sites: attentions.
        read: function of a site and what its heads read.

    Yields:
        A function that runs a batch through the model.

    Raises:
        ToxlocError: when a batch runs, if an attention does not compute one pattern per head over the positions.
    """

    def checked(site: Site, weights: Tensor | None, values: Tensor | None, n_calls: int = 1) -> None:
        heads = lm.at(site).n_units
        if weights is None or n_calls != 1 or weights.shape[1] != heads or weights.shape[2] != weights.shape[3]:
            raise ToxlocError(
                f"{site.title} of {lm.name} ({lm.model_type}) does not compute one attention pattern over the "
                f"positions for each of its {heads} heads, so it cannot be shown what they attend to; choose a model "
                "with softmax attention."
            )
        read(site, Attended(weights, values))

    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        if lm.hf is None:
            yield _watch_hooked_transformer(lm, sites, checked, stack)
        elif lm.hf._supports_attention_backend:
            yield _watch_function(lm, sites, checked, stack)
        else:
            yield _watch_modules(lm, sites, checked, stack)


def _watch_hooked_transformer(
    lm: LoadedModel, sites: Sequence[Site], read: Callable[..., None], stack: ExitStack
) -> Forward:
    values: dict[Site, Tensor] = {}
    for site in sites:
        prefix = f"blocks.{site.layer}.attn"

        def on_values(v: Tensor, site: Site = site) -> None:
            values[site] = v.transpose(1, 2)

        def on_pattern(weights: Tensor, site: Site = site) -> None:
            read(site, weights, values.pop(site))

        stack.enter_context(lm.hooks([(f"{prefix}.hook_v", on_values), (f"{prefix}.hook_pattern", on_pattern)]))

    def forward(batch: Batch) -> None:
        lm.forward_hidden(batch.ids, batch.mask)

    return forward


def _watch_function(lm: LoadedModel, sites: Sequence[Site], read: Callable[..., None], stack: ExitStack) -> Forward:
    """Watch the function that computes attention, which is given the values."""
    site_of = {module: site for site in sites for module in _attention(lm, site).modules()}
    calls: dict[Site, list[tuple[Tensor, Tensor, Tensor]]] = {site: [] for site in sites}

    def watching(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        eager: AttentionFunction = sys.modules[type(module).__module__].eager_attention_forward  # type: ignore[attr-defined]
        out, weights = eager(module, query, key, value, *args, **kwargs)
        if module in site_of and weights is not None:
            calls[site_of[module]].append((weights, value, out))
        return out, None

    for site in sites:

        def on_keys(module: nn.Module, args: tuple[Tensor, ...], site: Site = site) -> None:
            weights, values, out = calls[site][-1] if calls[site] else (None, None, None)
            z, n_calls = args[0], len(calls[site])
            calls[site].clear()
            summed = out is not None and out.numel() == z.numel() and torch.equal(out.reshape(z.shape), z)
            read(site, weights, values if summed else None, n_calls)

        linear = lm.at(site).linear
        assert linear is not None
        # Before the hooks of interventions, which change z but not the pattern.
        stack.callback(linear.register_forward_pre_hook(on_keys, prepend=True).remove)
    stack.enter_context(attention_computed_by(lm.hf, watching))

    def forward(batch: Batch) -> None:
        lm.decoder(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)

    return forward


def _watch_modules(lm: LoadedModel, sites: Sequence[Site], read: Callable[..., None], stack: ExitStack) -> Forward:
    """Watch what the attention modules return, for classes that do not call a function of transformers."""
    for site in sites:

        def on_return(module: nn.Module, args: Any, output: Any, site: Site = site) -> None:
            rest = output[1:] if isinstance(output, tuple) else ()
            read(site, next((x for x in rest if isinstance(x, Tensor) and x.ndim == 4), None), None)

        stack.callback(_attention(lm, site).register_forward_hook(on_return).remove)
    # Falcon refuses set_attn_implementation, and its fused attention returns weights without the causal mask.
    config = lm.hf.config
    stack.callback(setattr, config, "_attn_implementation", config._attn_implementation)
    config._attn_implementation = "eager"

    def forward(batch: Batch) -> None:
        lm.decoder(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False, output_attentions=True)

    return forward


def _attention(lm: LoadedModel, site: Site) -> nn.Module:
    """Return the module of `lm.hf` that computes an attention, of which W_O is a part."""
    assert lm.structure is not None
    writer = next(w for w in lm.structure.writers[site.layer] if w.part == site.part)
    module: nn.Module = lm.hf.get_submodule(writer.container)
    return module
