"""Attention of a single query to the keys and values before it, on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from ..models.loaded import LoadedModel

NAME = "toxloc_grouped"


def grouped_attention(module: nn.Module, query: Float[Tensor, "rows heads new d_head"],
                      key: Float[Tensor, "rows kv_heads pos d_head"], value: Float[Tensor, "rows kv_heads pos d_head"],
                      attention_mask: Float[Tensor, "rows 1 new pos"] | None, scaling: float | None = None,
                      softcap: float | None = None, **_: Any) -> tuple[Float[Tensor, "rows new heads d_head"], None]:
    """Compute softmax(query·key·scaling + mask)·value, as transformers' plain attention does.

    Heads that share keys and values (Ainslie et al. 2023, arXiv:2305.13245) are taken as more queries to them, where
    the plain attention copies keys and values for each.
    """
    new, kv_heads = query.shape[2], key.shape[1]
    query = rearrange(query, "rows (kv group) new d -> rows kv (group new) d", kv=kv_heads)
    weights = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        weights = softcap * (weights / softcap).tanh()
    if attention_mask is not None:
        weights = rearrange(weights, "rows kv (group new) pos -> rows kv group new pos", new=new)
        weights = (weights + attention_mask[:, :, None]).flatten(2, 3)
    weights = weights.softmax(-1, dtype=torch.float32).to(query.dtype)
    return rearrange(weights @ value, "rows kv (group new) d -> rows new (kv group) d", new=new).contiguous(), None


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, eager_mask)


@contextmanager
def one_query_at_a_time(lm: LoadedModel) -> Iterator[None]:
    """On a CPU, attention by plain products: torch's fused kernel is many times slower there for a single query."""
    before = lm.hf.config._attn_implementation
    if lm.device.type == "cpu" and before == "sdpa":
        lm.hf.set_attn_implementation(NAME if lm.hf._supports_attention_backend else "eager")
    try:
        yield
    finally:
        if lm.hf.config._attn_implementation != before:
            lm.hf.set_attn_implementation(before)
