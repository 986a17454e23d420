import pytest

from toxloc.evaluation.thinking import split_thinking


def test_thoughts_are_split_off_and_counted():
    completions = [
        ["<think>one two three</think>Yes.", "No."],
        ["<think>four five six seven", "<think>\n\n</think>Hi."],
    ]
    answers, thinking = split_thinking(["a", "b"], completions)
    assert answers == [["Yes.", "No."], ["", "Hi."]]
    assert thinking.texts == [["one two three", ""], ["four five six seven", ""]]
    assert (thinking.share, thinking.unfinished) == (0.5, 0.25)
    assert thinking.mean_words == pytest.approx(3.5)
    assert thinking.to_dict() == {"share": 0.5, "unfinished": 0.25, "mean_words": 3.5}


def test_without_thoughts_nothing_changes():
    assert split_thinking(["a"], [["Yes. ", "No."]]) == ([["Yes. ", "No."]], None)
