import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from tests.conftest import TEXTS
from toxloc import ToxlocError
from toxloc.models.batching import LOGITS_PER_BATCH, TOKENS_PER_BATCH, batches, decode_token, encode, pad


def test_every_text_is_read_once_with_a_mask_and_bos(tiny):
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


def test_batches_hold_at_most_the_given_number_of_positions(tiny):
    shapes = [batch.ids.shape for batch in batches(tiny, TEXTS * 5, tokens=40)]
    assert max(rows * width for rows, width in shapes) <= 40
    widths = [width for _, width in shapes]
    assert widths == sorted(widths, reverse=True)


def test_the_default_size_suits_a_cpu(tiny):
    """The vocabulary of the model is small, so the number of tokens is the limit, not the number of logits."""
    shapes = [batch.ids.shape for batch in batches(tiny, TEXTS * 100)]
    largest = max(rows * width for rows, width in shapes)
    assert TOKENS_PER_BATCH["cpu"] - 20 <= largest <= TOKENS_PER_BATCH["cpu"]
    assert LOGITS_PER_BATCH["cpu"] // tiny.d_vocab > TOKENS_PER_BATCH["cpu"]


def test_a_large_vocabulary_makes_batches_smaller(tiny, monkeypatch):
    monkeypatch.setitem(LOGITS_PER_BATCH, "cpu", 100 * tiny.d_vocab)
    assert max(batch.ids.numel() for batch in batches(tiny, TEXTS * 20)) <= 100


def test_the_leading_space_of_a_token_is_kept_and_none_is_added(tiny, monkeypatch):
    """The decoder strips the space of a token that begins with a space, as those of SentencePiece do."""
    words = Tokenizer(models.WordLevel({"▁day": 0, "s": 1}, unk_token="s"))
    words.decoder = decoders.Metaspace()
    monkeypatch.setattr(tiny, "tokenizer", PreTrainedTokenizerFast(tokenizer_object=words))
    assert tiny.tokenizer.decode([0]) == "day"
    assert [decode_token(tiny, token) for token in (0, 1)] == [" day", "s"]


def test_a_text_longer_than_a_batch_is_a_batch_by_itself(tiny):
    assert [b.ids.shape[0] for b in batches(tiny, TEXTS, tokens=1)] == [1] * len(TEXTS)


def test_texts_are_truncated_to_max_length_and_to_the_context(tiny):
    assert len(encode(tiny, ["word " * 500], max_length=10)[0]) == 10
    assert len(encode(tiny, ["word " * 500], max_length=1000)[0]) == tiny.context == 128


def test_the_mask_comes_from_lengths_although_pad_is_eos_and_bos(tiny):
    batch = pad(tiny, [[0, 0, 7], [0]], [0, 1], "left")
    assert batch.mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert torch.equal(batch.real, batch.mask == 1)


def test_a_bos_from_a_chat_template_is_not_repeated(tiny):
    once, bos = encode(tiny, ["Good morning!"], 128)[0], tiny.tokenizer.bos_token
    assert encode(tiny, [f"{bos}Good morning!", f"{bos}{bos}Good morning!"], 128) == [once, once]


def test_bos_is_not_added_if_prepend_bos_is_not_set(tiny):
    tiny.prepend_bos = False
    assert encode(tiny, ["hi"], 9)[0][0] != 0


def test_empty_text(tiny):
    with pytest.raises(ToxlocError, match="number 1 is empty"):
        encode(tiny, ["a", ""], 9)
