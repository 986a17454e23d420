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


def by_hand(lm, item):
    """Return the log-likelihood per character of every ending, computed one text at a time with `lm.hf`."""
    scores = []
    for ending in item.endings:
        ids = lm.tokenizer(f"{item.beginning} {ending}")["input_ids"]
        known = len(lm.tokenizer(item.beginning)["input_ids"]) + lm.prepend_bos
        ids = torch.tensor([[lm.tokenizer.bos_token_id] * lm.prepend_bos + ids])
        with torch.no_grad():
            logs = lm.hf(ids).logits[0].log_softmax(-1)
        scores.append(sum(logs[t - 1, ids[0, t]].item() for t in range(known, ids.shape[1])) / len(ending))
    return scores


def test_answers_equal_those_of_one_text_at_a_time(lm):
    expected = [int(np.argmax(by_hand(lm, item))) == item.right for item in ITEMS]
    assert answered_right(lm, ITEMS).tolist() == expected
    assert 0 < sum(expected) < 3  # right and wrong answers both occur


def test_the_interval_is_the_exact_binomial_interval(lm):
    right = answered_right(lm, ITEMS)
    result = accuracy(lm, ITEMS)
    assert (result.value, result.n) == (right.mean(), len(ITEMS))
    exact = stats.beta.ppf(
        [0.025, 0.975], [right.sum(), right.sum() + 1], [len(ITEMS) - right.sum() + 1, len(ITEMS) - right.sum()]
    )
    assert result.ci == pytest.approx(exact)


def test_interventions_change_the_answers(lm):
    items = [Choice(item.beginning, item.endings, int(np.argmax(by_hand(lm, item)))) for item in ITEMS * 3]
    assert answered_right(lm, items).all()
    with Meow2X(layers=range(8), scale=0.0).applied(lm):
        assert not answered_right(lm, items).all()


def test_files_in_the_layout_of_hellaswag(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text(
        "".join(
            json.dumps({"ind": 3, "ctx": item.beginning, "endings": item.endings, "label": item.right}) + "\n"
            for item in ITEMS
        )
    )
    assert load_choices(str(path)) == ITEMS
    assert load_choices(str(path), limit=2) == ITEMS[:2]
    for endings, label in (
        (["b", "c"], "2"),
        (["b", ""], "0"),
        ("bc", "0"),
        (["b", 3], "0"),
        ([], "0"),
        (["b", "c"], "²"),
        (["b", "c"], -1),
    ):
        path.write_text(json.dumps({"ctx": "a", "endings": endings, "label": label}))
        with pytest.raises(ToxlocError, match=r"Row 0 of .*items\.jsonl .* ctx, endings, .* and label"):
            load_choices(str(path))


@pytest.mark.parametrize("limit", [0, -1, 2.5])
def test_a_limit_is_a_whole_number(unchecked, limit):
    with pytest.raises(ToxlocError, match=f"limit={limit}: give a whole number, 1 or more"):
        load_choices("items.jsonl", limit)


def test_no_items_and_items_longer_than_the_context(lm):
    with pytest.raises(ToxlocError, match="no multiple-choice items"):
        answered_right(lm, [])
    with pytest.raises(ToxlocError, match="toxloc-tiny, 256 tokens"):
        answered_right(lm, [Choice("so " * 300, ["a", "b"], 0)])
