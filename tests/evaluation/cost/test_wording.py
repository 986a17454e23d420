from toxloc.evaluation.cost.wording import Wording, wording


def test_by_hand():
    result = wording([["a b a b", "so so"], ["", "one"]])
    assert result == Wording(median_words=1.5, distinct_2=3 / 4, repetition=1 / 4, empty=1 / 4)


def test_empty_completions():
    assert wording([[""]]) == Wording(median_words=0.0, distinct_2=0.0, repetition=0.0, empty=1.0)
