import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.cache_utils import DynamicLayer

from toxloc.generation.cache import SPARE, SpareRoomLayer, empty_cache, pad_left, select_rows


@given(
    st.lists(st.sampled_from(["one more", "many more", "rows leave", "columns leave", "again"]), max_size=12),
    st.integers(0, 2**20),
)
def test_a_layer_with_spare_room_holds_the_same_as_a_dynamic_layer(steps, seed):
    generator = torch.Generator().manual_seed(seed)
    spare, dynamic = SpareRoomLayer(), DynamicLayer()
    n = 4
    for step in ["one more", *steps, "one more"]:
        if step in ("one more", "many more"):
            keys, values = torch.randn(2, n, 2, 1 if step == "one more" else SPARE + 1, 3, generator=generator)
            for layer in (spare, dynamic):
                layer.update(keys, values)
        elif step == "again":  # positions that are written and then dropped must not affect later positions
            held = spare.keys, spare.values
            spare.update(*(torch.zeros(n, 2, 1, 3) for _ in range(2)))
            spare.keys, spare.values = held
        elif step == "rows leave" and n > 1:
            n -= 1
            for layer in (spare, dynamic):
                layer.batch_select_indices(torch.arange(1, n + 1))
        elif step == "columns leave" and spare.keys.shape[2] > 1:
            for layer in (spare, dynamic):
                layer.keys, layer.values = layer.keys[:, :, 1:], layer.values[:, :, 1:]
        assert torch.equal(spare.keys, dynamic.keys)
        assert torch.equal(spare.values, dynamic.values)


def test_adding_a_position_does_not_copy_the_existing_positions():
    layer = SpareRoomLayer()
    addresses = set()
    for _ in range(SPARE):
        layer.update(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2))
        addresses.add(layer.keys.data_ptr())
    assert len(addresses) == 2


def test_rows_are_selected_in_every_layer_with_repetitions():
    cache = empty_cache()
    keys = [torch.arange(6.0).view(3, 1, 1, 2) + 10 * layer for layer in range(2)]
    for layer in range(2):
        cache.update(keys[layer], -keys[layer], layer)
    select_rows(cache, torch.tensor([2, 0, 0]))
    for layer in range(2):
        assert cache.layers[layer].keys.flatten(1).tolist() == (keys[layer].flatten(1)[[2, 0, 0]]).tolist()
        assert torch.equal(cache.layers[layer].values, -cache.layers[layer].keys)


def test_padding_is_added_on_the_left_up_to_the_width():
    x = torch.tensor([[1, 2], [3, 4]])
    assert pad_left(x, 1, 3).tolist() == [[0, 1, 2], [0, 3, 4]]
    assert pad_left(x, 0, 3).tolist() == [[0, 0], [1, 2], [3, 4]]
    assert pad_left(x, 1, 2) is x
