import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from toxloc.evaluation.judgement import Judgement, combine


def judged(scores, threshold=0.5):
    return Judgement(scores, scores >= threshold)


def test_the_combined_judgements_of_three_evaluators_by_hand():
    scores = {"a": [[0.9, 0.1], [0.2, 0.6]], "b": [[0.6, 0.6], [0.3, 0.7]], "c": [[0.1, 0.2], [0.4, 0.8]]}
    combined = combine({name: judged(np.array(values)) for name, values in scores.items()})
    assert list(combined) == ["a", "b", "c", "any", "majority", "all"]
    assert combined["any"].toxic.tolist() == [[True, True], [False, True]]
    # "all" needs all three evaluators; two are not enough.
    assert combined["all"].toxic.tolist() == [[False, False], [False, True]]
    # Two of three are the majority: a and b call the first text toxic, only b the second.
    assert combined["majority"].toxic.tolist() == [[True, False], [False, True]]
    assert combined["any"].scores.tolist() == [[0.9, 0.6], [0.4, 0.8]]
    assert combined["majority"].scores.tolist() == [[0.6, 0.2], [0.3, 0.7]]
    assert combined["all"].scores.tolist() == [[0.1, 0.1], [0.2, 0.6]]


SCORES = hnp.arrays(np.float64, (5, 3), elements=st.floats(0, 1))


@given(SCORES, SCORES)
def test_the_rate_of_all_is_at_most_and_of_any_at_least_that_of_each_evaluator(a, b):
    rates = {name: j.toxic.mean() for name, j in combine({"a": judged(a), "b": judged(b, 0.8)}).items()}
    assert rates["all"] <= min(rates["a"], rates["b"]) <= max(rates["a"], rates["b"]) <= rates["any"]


def test_the_majority_is_more_than_half():
    half = np.array([[True], [True], [False], [False]])  # rows: evaluators
    judges = {str(i): Judgement(np.array([[0.1 * i]]), half[i : i + 1]) for i in range(4)}
    assert not combine(judges)["majority"].toxic[0, 0]
    assert combine(judges)["majority"].scores[0, 0] == 0.1  # three of the four reach .1
    judges["3"] = Judgement(np.array([[0.3]]), np.array([[True]]))
    assert combine(judges)["majority"].toxic[0, 0]


def test_two_evaluators_have_no_majority_of_their_own():
    assert list(combine({name: judged(np.array([[0.7]])) for name in "ab"})) == ["a", "b", "any", "all"]


@given(SCORES, SCORES, SCORES)
def test_the_majority_lies_between_all_and_any_and_does_not_depend_on_the_order(a, b, c):
    judges = {"a": judged(a), "b": judged(b, 0.8), "c": judged(c, 0.3)}
    combined, reversed_ = combine(judges), combine(dict(reversed(judges.items())))
    for lower, higher in (("all", "majority"), ("majority", "any")):
        assert (combined[lower].toxic <= combined[higher].toxic).all()
        assert (combined[lower].scores <= combined[higher].scores).all()
    np.testing.assert_array_equal(combined["majority"].toxic, reversed_["majority"].toxic)
    np.testing.assert_array_equal(combined["majority"].scores, np.median([a, b, c], axis=0))
