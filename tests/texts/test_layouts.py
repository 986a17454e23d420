import pytest

from toxloc import ToxlocError
from toxloc.texts.layouts import (
    columns_of,
    find_column,
    is_realtoxicityprompts,
    label_in,
    realtoxicityprompts_contrast,
    realtoxicityprompts_prompts,
    text_in,
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
        ("0.9", True),
        (" 0.25 ", False),
        ("0.4", None),
        (float("nan"), None),
        ("nan", None),
        (-0.1, None),
        ("", None),
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


COMPLETE = [row("They are", 0.1, " kind.", 0.0), row("You fool,", 0.9, " go.", 0.1)]
NAN = float("nan")


@pytest.mark.parametrize(
    "incomplete",
    [
        {"prompt": None, "continuation": None},
        {"prompt": None, "continuation": {"text": " b", "toxicity": 0.9}},
        {},
        {"other": 1},
        row(None, 0.9, None, 0.9),
        row(" ", 0.9, " \n", 0.9),
        {"prompt": {"toxicity": 0.9}, "continuation": {"toxicity": 0.9}},
        {"prompt": {}, "continuation": {}},
        row("A", NAN, " b", None),
        row("A", None, " b", NAN, NAN),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_incomplete_rows_are_left_out(incomplete, place):
    rows = [*COMPLETE[:place], incomplete, *COMPLETE[place:]]
    pairs = realtoxicityprompts_contrast(rows, "r")
    assert (pairs.toxic, pairs.neutral) == (["You fool, go."], ["They are kind."])
    assert realtoxicityprompts_prompts(rows, "r", None).texts == ["They are", "You fool,"]


def test_a_row_without_a_continuation_is_a_prompt_and_no_contrast_text():
    rows = [*COMPLETE, {"prompt": {"text": "You liar", "toxicity": 0.8}, "continuation": None}]
    assert realtoxicityprompts_prompts(rows, "r", "toxic").texts == ["You fool,", "You liar"]
    assert realtoxicityprompts_contrast(rows, "r").toxic == ["You fool, go."]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (row("A", "high", " b", 0.1), "In the prompt of row 2 of r, 'toxicity' is 'high', not a score from 0 to 1"),
        (row("A", "0.5", " b", 0.1), "'toxicity' is '0.5', not a score"),
        (row("A", 1.5, " b", 0.1), r"'toxicity' is 1\.5, not a score from 0 to 1"),
        (row("A", -1, " b", 0.1), "'toxicity' is -1, not a score"),
        (row("A", float("inf"), " b", 0.1), "'toxicity' is inf, not a score"),
        (row("A", True, " b", 0.1), "'toxicity' is True, not a score"),
        (row("A", [0.1], " b", 0.1), r"'toxicity' is \[0\.1\], not a score"),
        (row(5, 0.1, " b", 0.1), "In the prompt of row 2 of r, 'text' is 5, not a text"),
        (row(["x"] * 1000, 0.1, " b", 0.1), r"'text' is \['x'.{1,40}…, not a text"),
        ({"prompt": "A", "continuation": "b"}, "In row 2 of r, 'prompt' is 'A', not an object with a text"),
        ({"prompt": [1]}, r"In row 2 of r, 'prompt' is \[1\], not an object"),
    ],
)
@pytest.mark.parametrize("read", [realtoxicityprompts_contrast, lambda *a: realtoxicityprompts_prompts(*a, "all")])
def test_values_of_wrong_types_are_named(read, wrong, message):
    with pytest.raises(ToxlocError, match=message):
        read([*COMPLETE, wrong], "r")


def test_a_wrong_continuation_and_a_wrong_mark_are_named():
    with pytest.raises(ToxlocError, match=r"In the continuation of row 0 of r, 'toxicity' is 2\.0"):
        realtoxicityprompts_contrast([row("A", 0.1, " b", 2.0)], "r")
    with pytest.raises(ToxlocError, match="In row 0 of r, 'challenging' is 'false', not true or false"):
        realtoxicityprompts_prompts([row("A", 0.1, " b", 0.1, "false")], "r", None)


@pytest.mark.parametrize(("value", "text"), [("a", "a"), (None, None), (" \n", None), (NAN, None)])
def test_a_missing_text_is_none(value, text):
    assert text_in({"text": value}, "text", "row 0") == text
    assert text_in({}, "text", "row 0") is None


@pytest.mark.parametrize("value", [5, 0.5, True, ["a"], {"a": 1}, b"a"])
def test_a_text_of_a_wrong_type_is_named(value):
    with pytest.raises(ToxlocError, match=r"^In row 7, 'body' is .*, not a text; correct or remove the row\.$"):
        text_in({"body": value}, "body", "row 7")


@pytest.mark.parametrize("value", [["toxic"], {"label": 1}])
def test_a_label_of_a_wrong_type_is_named(value):
    assert label_in({"label": "toxic"}, "label", "row 7") is True
    with pytest.raises(ToxlocError, match=r"^In row 7, 'label' is .*, not a class name or a score"):
        label_in({"label": value}, "label", "row 7")


def test_many_columns_are_shortened_and_have_no_control_characters():
    assert columns_of([{"a": 1, "b": 2}]) == "a, b"
    shown = columns_of([{"a\nb": 1} | {f"column {i}": 0 for i in range(1000)}])
    assert shown.startswith(r"a\nb, column 0, column 1, ") and shown.endswith(" …") and len(shown) <= 300


def test_missing_prompts_are_named():
    with pytest.raises(ToxlocError, match="r has no challenging prompts"):
        realtoxicityprompts_prompts([row("mild", 0.1, "", 0)], "r", "challenging")


def test_the_layout_is_recognised_by_both_parts():
    assert is_realtoxicityprompts(row("a", 0, "b", 0))
    assert not is_realtoxicityprompts({"prompt": "a", "continuation": "b"})
