"""Fast attention for single queries on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ..models.attention import attention_computed_by
from ..models.loaded import LoadedModel


def grouped_attention(
    module: nn.Module,
    query: Float[Tensor, "rows heads new d_head"],
    key: Float[Tensor, "rows kv_heads pos d_head"],
    value: Float[Tensor, "rows kv_heads pos d_head"],
    attention_mask: Float[Tensor, "rows 1 new pos"] | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "rows new heads d_head"], None]:
    """Compute softmax(query·key·scaling + mask)·value, as transformers' eager attention does.

    In grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245) several heads share keys and values. Eager
    attention copies keys and values for each head; this function treats the heads of a group as additional queries.

    Args:
        module: the attention module; unused.
        query: one vector per head and new position.
        key: one vector per key-value head and position.
        value: one vector per key-value head and position.
        attention_mask: 0 where a query attends to a position, a large negative number elsewhere; None if every query
            attends to every position.
        scaling: factor of the dot products; by default 1/√d_head.
        softcap: if given, a scaled product x becomes softcap·tanh(x / softcap), as in Gemma 2.

    Returns:
        The weighted values, and None in place of the attention weights.
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


@contextmanager
def fast_attention(lm: LoadedModel) -> Iterator[None]:
    """Within the block, use `grouped_attention` for a model on a CPU, or eager attention if its class requires it.

    For a single query on a CPU, torch's fused kernel is many times slower. Models on other devices, models that do not
    use the fused kernel, and models that are already inside such a block are left unchanged.
    """
    if lm.device.type == "cpu" and lm.hf.config._attn_implementation == "sdpa":
        with attention_computed_by(lm.hf, grouped_attention):
            yield
    else:
        yield
