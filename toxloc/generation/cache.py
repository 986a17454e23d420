"""Key-value cache with spare room, so that adding a position does not copy the existing positions."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

SPARE = 32  # positions allocated beyond those in use


class SpareRoomLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of a layer, [rows, heads, pos, d_head], allocated with room for more positions.

    transformers' `DynamicLayer` copies all keys and values whenever it adds a position. This layer copies them only
    when the spare room is used up, or after other code has replaced them.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.allocated: dict[str, Tensor] = {}  # for "keys" and "values", the tensor whose first positions are in use

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append the keys and values of new positions, and return the keys and values of all positions."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
        else:
            self.keys, self.values = self._append("keys", key_states), self._append("values", value_states)
        return self.keys, self.values

    def _append(self, name: str, new: Tensor) -> Tensor:
        held: Tensor = getattr(self, name)
        allocated = self.allocated.get(name)
        rows, heads, n, d_head = held.shape
        end = n + new.shape[2]
        if allocated is None or end > allocated.shape[2] or not _is_same(held, allocated[:, :, :n]):
            allocated = self.allocated[name] = held.new_empty(rows, heads, end + SPARE, d_head)
            allocated[:, :, :n] = held
        allocated[:, :, n:end] = new
        return allocated[:, :, :end]


def _is_same(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors are the same view of the same memory."""
    return x.data_ptr() == y.data_ptr() and x.shape == y.shape and x.stride() == y.stride()


def empty_cache() -> Cache:
    """Return an empty cache whose layers have spare room."""
    return Cache(layer_class_to_replicate=SpareRoomLayer)


def select_rows(cache: Cache, rows: Int[Tensor, " kept"]) -> None:
    """Keep the given rows of every layer, in the given order and with repetitions. Changes the cache."""
    for layer in cache.layers:
        layer.batch_select_indices(rows.to(layer.keys.device))  # layers can be on different devices


def pad_left(x: Tensor, axis: int, width: int) -> Tensor:
    """Pad `x` with zeros at the beginning of `axis` to length `width`.

    Example:
        >>> pad_left(torch.tensor([[7, 8]]), axis=1, width=4)
        tensor([[0, 0, 7, 8]])
    """
    shape = list(x.shape)
    shape[axis] = width - shape[axis]
    return torch.cat([x.new_zeros(shape), x], axis) if shape[axis] else x
