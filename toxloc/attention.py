"""Attention of a single query to the keys and values before it, on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import eager_mask

from .model import LoadedModel

NAME = "toxloc_grouped"
ROOM = 32  # positions


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


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of a layer, [rows, heads, pos, d_head], with room behind them: one more copies none of them."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.room: dict[str, Tensor] = {}

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Add keys and values of new positions, and return all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
        else:
            self.keys, self.values = self._followed("keys", key_states), self._followed("values", value_states)
        return self.keys, self.values

    def _followed(self, name: str, new: Tensor) -> Tensor:
        held: Tensor = getattr(self, name)
        room = self.room.get(name)
        rows, heads, n, d_head = held.shape
        end = n + new.shape[2]
        if room is None or end > room.shape[2] or not _is_same(held, room[:, :, :n]):
            room = self.room[name] = held.new_empty(rows, heads, end + ROOM, d_head)
            room[:, :, :n] = held
        room[:, :, n:end] = new
        return room[:, :, :end]


def _is_same(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors are one piece of memory."""
    return x.data_ptr() == y.data_ptr() and x.shape == y.shape and x.stride() == y.stride()
