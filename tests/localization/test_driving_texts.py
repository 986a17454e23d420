import pytest

import toxloc.models.batching
from tests.conftest import TEXTS, random_hf, tokenizer
from tests.models.test_hooked_transformer import with_class
from toxloc import ToxlocError
from toxloc.localization.driving_texts import driving_texts
from toxloc.models.loaded import LoadedModel

from .by_hand import ids_of, rows_of


@pytest.mark.parametrize("skip_first", [True, False])
def test_driving_texts_equal_those_of_the_plain_model_text_by_text(any_family, skip_first, monkeypatch):
    lm, layer, neuron = any_family, 1, 11
    monkeypatch.setitem(toxloc.models.batching.TOKENS_PER_BATCH, "cpu", 30)  # several batches, some of several texts
    peaks = []
    for i, text in enumerate(TEXTS):
        ids, a = ids_of(lm, text), rows_of(lm, [text], layer, skip_first=False)[0][:, neuron]
        position = max(range(int(skip_first), len(a)), key=lambda t, a=a: a[t])
        peaks.append((a[position].item(), i, position, lm.tokenizer.decode(ids[0, [position]])))
    peaks.sort(reverse=True)
    driven = driving_texts(lm, TEXTS, layer, neuron, k=3, skip_first=skip_first)
    assert [(d.index, d.position, d.token, d.text) for d in driven] == [
        (i, position, token, TEXTS[i]) for _, i, position, token in peaks[:3]
    ]
    assert [d.activation for d in driven] == pytest.approx([a for a, *_ in peaks[:3]], rel=1e-4, abs=1e-6)


def test_equal_texts_keep_their_order_and_k_may_exceed_the_number_of_texts(tiny):
    driven = driving_texts(tiny, [TEXTS[0], TEXTS[1], TEXTS[0]], 0, 3, k=9)
    assert len(driven) == 3
    assert [d.index for d in driven if d.text == TEXTS[0]] == [0, 2]
    assert driving_texts(tiny, TEXTS, 0, 3, max_length=1) == []


def test_driven_is_printed_masked_and_keeps_the_text(tiny):
    (driven,) = driving_texts(tiny, ["You are a fool."], 0, 3)
    assert driven.shown(masked=False) == driven.text == "You are a fool."
    assert driven.shown() == "Y·· a·· a f···."
    assert "fool" not in repr(driven) + str(driven)
    assert "Y·· a·· a f···." in repr(driven)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(texts=[], layer=0, neuron=0), "k=1 of 0 texts"),
        (dict(texts=TEXTS, layer=0, neuron=0, k=0), "k=0 of 5 texts"),
        (dict(texts=TEXTS, layer=2, neuron=0), "There is no layer 2 in random-gpt2"),
        (dict(texts=TEXTS, layer=0, neuron=64), "There is no neuron 64 in layer 0"),
        (dict(texts=["fine", ""], layer=0, neuron=0), "is empty"),
    ],
)
def test_impossible_arguments_are_named(tiny, arguments, message):
    with pytest.raises(ToxlocError, match=message):
        driving_texts(tiny, **{"k": 1} | arguments)


@with_class
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_hooked_transformer_without_hugging_face_gives_the_same_texts(family):
    full = LoadedModel.from_hf(random_hf(family), tokenizer(), hooks="transformer")
    alone = LoadedModel.of(full.hooked)
    assert alone.hf is None
    driven, expected = (driving_texts(lm, TEXTS, 1, 11, k=4) for lm in (alone, full))
    assert [(d.index, d.position, d.token) for d in driven] == [(d.index, d.position, d.token) for d in expected]
    assert [d.activation for d in driven] == pytest.approx([d.activation for d in expected], rel=1e-5)
