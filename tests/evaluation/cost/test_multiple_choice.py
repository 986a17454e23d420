import json

import numpy as np
import pytest
import torch
from scipy import stats

from toxloc import Meow2X, ToxlocError
from toxloc.evaluation.cost.multiple_choice import Choice, accuracy, answered_right, load_choices

ITEMS = [
    Choice("The soup was far too hot, so", ["she waited.", "the moon sang to a chair of seven.", "no no no."], 0),
    Choice("He took his coat and", ["went out.", "purple under of", "is are been the", "left the house."], 3),
    Choice("I", ["am tired and want to go home now.", "zx qv"], 1),
]


def by_hand(lm, one):
    """Log-likelihood per character of every ending, one text at a time through the plain model."""
    found = []
    for ending in one.endings:
        ids = lm.tokenizer(f"{one.beginning} {ending}")["input_ids"]
        known = len(lm.tokenizer(one.beginning)["input_ids"]) + lm.prepend_bos
        ids = torch.tensor([[lm.tokenizer.bos_token_id] * lm.prepend_bos + ids])
        with torch.no_grad():
            logs = lm.hf(ids).logits[0].log_softmax(-1)
        found.append(sum(logs[t - 1, ids[0, t]].item() for t in range(known, ids.shape[1])) / len(ending))
    return found


def test_it_equals_one_text_at_a_time(lm):
    expected = [int(np.argmax(by_hand(lm, one))) == one.right for one in ITEMS]
    assert answered_right(lm, ITEMS).tolist() == expected
    assert 0 < sum(expected) < 3  # both verdicts are tried


def test_the_interval_is_that_of_a_binomial_share(lm):
    right = answered_right(lm, ITEMS)
    found = accuracy(lm, ITEMS)
    assert (found.value, found.n) == (right.mean(), len(ITEMS))
    exact = stats.beta.ppf(
        [0.025, 0.975], [right.sum(), right.sum() + 1], [len(ITEMS) - right.sum() + 1, len(ITEMS) - right.sum()]
    )
    assert found.ci == pytest.approx(exact)


def test_it_sees_interventions(lm):
    items = [Choice(one.beginning, one.endings, int(np.argmax(by_hand(lm, one)))) for one in ITEMS * 3]
    assert answered_right(lm, items).all()
    with Meow2X(layers=range(8), scale=0.0).applied(lm):
        assert not answered_right(lm, items).all()


def test_files_in_the_layout_of_hellaswag(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text(
        "".join(
            json.dumps({"ind": 3, "ctx": one.beginning, "endings": one.endings, "label": one.right}) + "\n"
            for one in ITEMS
        )
    )
    assert load_choices(str(path)) == ITEMS
    assert load_choices(str(path), limit=2) == ITEMS[:2]
    path.write_text(json.dumps({"ctx": "a", "endings": ["b", "c"], "label": "2"}))
    with pytest.raises(ToxlocError, match=r"Row 0 of .* is no multiple-choice item; HellaSwag's layout"):
        load_choices(str(path))


def test_no_items_and_items_without_room(lm):
    with pytest.raises(ToxlocError, match="no multiple-choice items"):
        answered_right(lm, [])
    with pytest.raises(ToxlocError, match="fill the 256 tokens that toxloc-tiny takes"):
        answered_right(lm, [Choice("so " * 300, ["a", "b"], 0)])
