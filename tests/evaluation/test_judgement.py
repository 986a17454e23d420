import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from toxloc.evaluation.judgement import Judgement, combine


def judged(scores, threshold=0.5):
    return Judgement(scores, scores >= threshold)


def test_any_and_all_of_three_evaluators_by_hand():
    scores = {"a": [[0.9, 0.1], [0.2, 0.6]], "b": [[0.6, 0.6], [0.3, 0.7]], "c": [[0.1, 0.2], [0.4, 0.8]]}
    found = combine({name: judged(np.array(one)) for name, one in scores.items()})
    assert list(found) == ["a", "b", "c", "any", "all"]
    assert found["any"].toxic.tolist() == [[True, True], [False, True]]
    assert found["all"].toxic.tolist() == [[False, False], [False, True]]  # all three, not any two
    assert found["any"].scores.tolist() == [[0.9, 0.6], [0.4, 0.8]]
    assert found["all"].scores.tolist() == [[0.1, 0.1], [0.2, 0.6]]


SOME = hnp.arrays(np.float64, (5, 3), elements=st.floats(0, 1))


@given(SOME, SOME)
def test_all_is_at_most_each_evaluator_and_any_at_least(a, b):
    rates = {name: j.toxic.mean() for name, j in combine({"a": judged(a), "b": judged(b, 0.8)}).items()}
    assert rates["all"] <= min(rates["a"], rates["b"]) <= max(rates["a"], rates["b"]) <= rates["any"]
