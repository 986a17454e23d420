import pytest
import torch

from tests.conftest import TEXTS
from toxloc import ToxlocError
from toxloc.models.batching import batches, encode, pad


def test_every_text_comes_once_masked_and_begun_with_bos(tiny):
    seen = {}
    for batch in batches(tiny, TEXTS, tokens=24):
        assert batch.ids.shape == batch.mask.shape
        for row, mask, i in zip(batch.ids, batch.mask, batch.index, strict=True):
            length = int(mask.sum())
            assert mask[:length].all()
            seen[i] = row[:length].tolist()
    assert sorted(seen) == list(range(len(TEXTS)))
    for i, text in enumerate(TEXTS):
        assert seen[i] == [0, *tiny.tokenizer(text)["input_ids"]]


def test_batches_hold_at_most_the_positions_asked_for(tiny):
    found = list(batches(tiny, TEXTS * 5, tokens=40))
    assert max(batch.ids.numel() for batch in found) <= 40
    widths = [batch.ids.shape[1] for batch in found]
    assert widths == sorted(widths, reverse=True)


def test_a_text_longer_than_a_batch_goes_alone(tiny):
    assert [b.ids.shape[0] for b in batches(tiny, TEXTS, tokens=1)] == [1] * len(TEXTS)


def test_texts_are_cut_at_max_length_and_at_the_context(tiny):
    assert len(encode(tiny, ["word " * 500], max_length=10)[0]) == 10
    assert len(encode(tiny, ["word " * 500], max_length=1000)[0]) == tiny.context == 64


def test_the_mask_comes_from_lengths_although_pad_is_eos_and_bos(tiny):
    batch = pad(tiny, [[0, 0, 7], [0]], [0, 1], "left")
    assert batch.mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert torch.equal(batch.real, batch.mask == 1)


def test_a_bos_that_a_chat_template_wrote_stays_the_only_one(tiny):
    once, bos = encode(tiny, ["Good morning!"], 128)[0], tiny.tokenizer.bos_token
    assert encode(tiny, [f"{bos}Good morning!", f"{bos}{bos}Good morning!"], 128) == [once, once]


def test_bos_is_not_added_where_the_model_wants_none(tiny):
    tiny.prepend_bos = False
    assert encode(tiny, ["hi"], 9)[0][0] != 0


def test_empty_text(tiny):
    with pytest.raises(ToxlocError, match="number 1 is empty"):
        encode(tiny, ["a", ""], 9)
