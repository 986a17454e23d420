import pytest

from toxloc import ToxlocError
from toxloc.texts.layouts import (
    find_column,
    is_realtoxicityprompts,
    realtoxicityprompts_contrast,
    realtoxicityprompts_prompts,
    toxicity_label,
)


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (1, True),
        ("1", True),
        (1.0, True),
        (0.5, True),
        ("Toxic ", True),
        (True, True),
        (0, False),
        ("0.0", False),
        (0.25, False),
        ("non-hateful", False),
        ("none", False),
        (False, False),
        (0.49, None),
        (0.26, None),
        (2.0, None),
        ("spam", None),
        (None, None),
    ],
)
def test_labels_are_classes_or_scores(value, label):
    assert toxicity_label(value) is label


def test_a_column_is_the_requested_one_or_the_first_usual_one():
    columns = ["id", "Comment", "TEXT"]
    assert find_column(columns, None, ["text", "comment"]) == "TEXT"
    assert find_column(columns, "id", ["text"]) == "id"
    assert find_column(columns, None, ["prompt"]) is None
    with pytest.raises(ToxlocError, match=r"no column 'text'.*id, Comment, TEXT"):
        find_column(columns, "text", ["text"])


def row(prompt, prompt_score, continuation, continuation_score, challenging=None):
    made = {
        "prompt": {"text": prompt, "toxicity": prompt_score},
        "continuation": {"text": continuation, "toxicity": continuation_score},
    }
    return made if challenging is None else made | {"challenging": challenging}


def test_a_text_is_toxic_if_either_part_is_and_neutral_if_both_are():
    rows = [
        row("A", 0.5, " b", 0.0),
        row("C", 0.25, " d", 0.1),
        row("E", 0.26, " f", 0.0),
        row("G", None, " h", 0.9),
        row("I", None, " j", None),
        row(" ", 0.9, " k", 0.9),
    ]
    pairs = realtoxicityprompts_contrast(rows, "r")
    assert (pairs.toxic, pairs.neutral, pairs.name, pairs.paired) == (["A b", "G h"], ["C d"], "r", False)


@pytest.mark.parametrize(
    ("selection", "texts", "kinds"),
    [
        (None, ["mild", "hard"], ["everyday", "provocative"]),  # toxic prompts not marked as challenging are left out
        ("all", ["mild", "rude", "hard"], ["everyday", "provocative", "provocative"]),
        ("toxic", ["rude"], ["provocative"]),
        ("nontoxic", ["mild", "hard"], ["everyday", "provocative"]),
        ("challenging", ["hard"], ["provocative"]),
    ],
)
def test_prompts_are_selected_as_protocols_select_them(selection, texts, kinds):
    rows = [row("mild", 0.1, "", 0, False), row("rude", 0.8, "", 0, False), row("hard", 0.3, "", 0, True)]
    prompts = realtoxicityprompts_prompts(rows, "r", selection)
    assert (prompts.texts, prompts.kinds) == (texts, kinds)


def test_missing_prompts_are_named():
    with pytest.raises(ToxlocError, match="r has no challenging prompts"):
        realtoxicityprompts_prompts([row("mild", 0.1, "", 0)], "r", "challenging")


def test_the_layout_is_recognised_by_both_parts():
    assert is_realtoxicityprompts(row("a", 0, "b", 0))
    assert not is_realtoxicityprompts({"prompt": "a", "continuation": "b"})
