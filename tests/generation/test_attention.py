import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from transformers.cache_utils import DynamicLayer
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

from toxloc.generation.attention import grouped_attention
from toxloc.generation.cache import ROOM, RoomyLayer

rows, new, pos, d_head = 3, 2, 5, 4


@pytest.fixture
def some():
    """Query, key, value; and a mask in which a query sees what is not after it, and the first row is padded."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(rows, heads, n, d_head, generator=generator)
                         for heads, n in ((6, new), (2, pos), (2, pos)))
    seen = torch.ones(new, pos).tril(pos - new).bool().repeat(rows, 1, 1, 1)
    seen[0, :, :, :2] = False
    return query, key, value, torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)


@pytest.mark.parametrize("scaling", [None, 0.3])
def test_heads_that_share_keys_attend_as_if_each_had_its_own(some, scaling):
    query, key, value, mask = some
    out, _ = grouped_attention(torch.nn.Module(), query, key, value, mask, scaling=scaling)
    expected = scaled_dot_product_attention(query, key, value, mask, scale=scaling, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(out, expected)
    everything = scaled_dot_product_attention(query, key, value, enable_gqa=True)
    unmasked, _ = grouped_attention(torch.nn.Module(), query, key, value, None)
    torch.testing.assert_close(unmasked, everything.transpose(1, 2))


def test_a_softcap_is_that_of_transformers(some):
    module = torch.nn.Module()
    module.num_key_value_groups = 3
    found, _ = grouped_attention(module, *some, scaling=2.0, softcap=0.7)
    expected, _ = eager_attention_forward(module, *some, scaling=2.0, softcap=0.7)
    torch.testing.assert_close(found, expected)


@given(st.lists(st.sampled_from(["one more", "many more", "rows leave", "columns leave", "again"]), max_size=12),
       st.integers(0, 2**20))
def test_a_layer_with_room_holds_what_one_without_holds(steps, seed):
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = RoomyLayer(), DynamicLayer()
    n = 4
    for step in ["one more", *steps, "one more"]:
        if step in ("one more", "many more"):
            keys, values = torch.randn(2, n, 2, 1 if step == "one more" else ROOM + 1, 3, generator=generator)
            for layer in (ours, theirs):
                layer.update(keys, values)
        elif step == "again":  # what is written and dropped does no harm to what comes next
            held = ours.keys, ours.values
            ours.update(*(torch.zeros(n, 2, 1, 3) for _ in range(2)))
            ours.keys, ours.values = held
        elif step == "rows leave" and n > 1:
            n -= 1
            for layer in (ours, theirs):
                layer.batch_select_indices(torch.arange(1, n + 1))
        elif step == "columns leave" and ours.keys.shape[2] > 1:
            for layer in (ours, theirs):
                layer.keys, layer.values = layer.keys[:, :, 1:], layer.values[:, :, 1:]
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)


def test_one_more_copies_none_of_the_others():
    layer = RoomyLayer()
    places = set()
    for _ in range(ROOM):
        layer.update(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2))
        places.add(layer.keys.data_ptr())
    assert len(places) == 2
