"""Keys and values of the tokens that were read, with room for more."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

ROOM = 32  # positions


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


def new_cache() -> Cache:
    return Cache(layer_class_to_replicate=RoomyLayer)


def select_rows(cache: Cache, rows: Int[Tensor, " kept"]) -> None:
    """Keep these rows, in this order; a layer may lie on a device of its own."""
    for layer in cache.layers:
        layer.batch_select_indices(rows.to(layer.keys.device))


def widened(x: Tensor, axis: int, width: int) -> Tensor:
    """Pad with zeros on the left of an axis."""
    shape = list(x.shape)
    shape[axis] = width - shape[axis]
    return torch.cat([x.new_zeros(shape), x], axis) if shape[axis] else x
