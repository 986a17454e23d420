import pytest

import toxloc.models.batching
from tests.conftest import TEXTS, random_hf, tokenizer
from tests.models.test_hooked_transformer import with_class
from toxloc import ToxlocError
from toxloc.localization.driving_texts import driving_texts
from toxloc.models.loaded import LoadedModel

from .by_hand import ids_of, rows_of


@pytest.mark.parametrize("skip_first", [True, False])
def test_driving_texts_are_those_of_the_plain_model_text_by_text(any_family, skip_first, monkeypatch):
    lm, layer, neuron = any_family, 1, 11
    monkeypatch.setitem(toxloc.models.batching.TOKENS_PER_BATCH, "cpu", 30)  # several batches, some of several texts
    peaks = []
    for i, text in enumerate(TEXTS):
        ids, a = ids_of(lm, text), rows_of(lm, [text], layer, skip_first=False)[0][:, neuron]
        position = max(range(int(skip_first), len(a)), key=lambda t, a=a: a[t])
        peaks.append((a[position].item(), i, position, lm.tokenizer.decode(ids[0, [position]])))
    peaks.sort(reverse=True)
    found = driving_texts(lm, TEXTS, layer, neuron, k=3, skip_first=skip_first)
    assert [(d.index, d.position, d.token, d.text) for d in found] == [
        (i, position, token, TEXTS[i]) for _, i, position, token in peaks[:3]
    ]
    assert [d.activation for d in found] == pytest.approx([a for a, *_ in peaks[:3]], rel=1e-4, abs=1e-6)


def test_of_equal_texts_the_first_comes_first_and_fewer_come_back_if_there_are_fewer(tiny):
    found = driving_texts(tiny, [TEXTS[0], TEXTS[1], TEXTS[0]], 0, 3, k=9)
    assert len(found) == 3
    assert [d.index for d in found if d.text == TEXTS[0]] == [0, 2]
    assert driving_texts(tiny, TEXTS, 0, 3, max_length=1) == []


def test_driven_prints_masked_and_keeps_raw(tiny):
    (found,) = driving_texts(tiny, ["You are a fool."], 0, 3)
    assert found.shown(masked=False) == found.text == "You are a fool."
    assert found.shown() == "Y·· a·· a f···."
    assert "fool" not in repr(found) + str(found)
    assert "Y·· a·· a f···." in repr(found)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (dict(texts=[], layer=0, neuron=0), "1 of 0 texts"),
        (dict(texts=TEXTS, layer=0, neuron=0, k=0), "0 of 5 texts"),
        (dict(texts=TEXTS, layer=2, neuron=0), "There is no layer 2 in random-gpt2"),
        (dict(texts=TEXTS, layer=0, neuron=64), "There is no neuron 64 in layer 0"),
        (dict(texts=["fine", ""], layer=0, neuron=0), "is empty"),
    ],
)
def test_driving_texts_names_what_cannot_be(tiny, how, words):
    with pytest.raises(ToxlocError, match=words):
        driving_texts(tiny, **{"k": 1} | how)


@with_class
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_hooked_transformer_alone_is_driven_as_the_model_beside_hugging_faces(family):
    full = LoadedModel.from_hf(random_hf(family), tokenizer(), hooks="transformer")
    alone = LoadedModel.of(full.hooked)
    assert alone.hf is None
    found, expected = (driving_texts(lm, TEXTS, 1, 11, k=4) for lm in (alone, full))
    assert [(d.index, d.position, d.token) for d in found] == [(d.index, d.position, d.token) for d in expected]
    assert [d.activation for d in found] == pytest.approx([d.activation for d in expected], rel=1e-5)
