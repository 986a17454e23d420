import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from toxloc.evaluation.judgement import Judgement, combine


def judged(scores, threshold=0.5):
    return Judgement(scores, scores >= threshold)


def test_any_and_all_of_three_evaluators_by_hand():
    scores = {"a": [[0.9, 0.1], [0.2, 0.6]], "b": [[0.6, 0.6], [0.3, 0.7]], "c": [[0.1, 0.2], [0.4, 0.8]]}
    combined = combine({name: judged(np.array(values)) for name, values in scores.items()})
    assert list(combined) == ["a", "b", "c", "any", "all"]
    assert combined["any"].toxic.tolist() == [[True, True], [False, True]]
    # "all" needs all three evaluators; two are not enough.
    assert combined["all"].toxic.tolist() == [[False, False], [False, True]]
    assert combined["any"].scores.tolist() == [[0.9, 0.6], [0.4, 0.8]]
    assert combined["all"].scores.tolist() == [[0.1, 0.1], [0.2, 0.6]]


SCORES = hnp.arrays(np.float64, (5, 3), elements=st.floats(0, 1))


@given(SCORES, SCORES)
def test_the_rate_of_all_is_at_most_and_of_any_at_least_that_of_each_evaluator(a, b):
    rates = {name: j.toxic.mean() for name, j in combine({"a": judged(a), "b": judged(b, 0.8)}).items()}
    assert rates["all"] <= min(rates["a"], rates["b"]) <= max(rates["a"], rates["b"]) <= rates["any"]
