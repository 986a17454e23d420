import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from toxloc.evaluation.agreement import agreement, kappa
from toxloc.evaluation.toxicity import Judgement, combine


def judgement(toxic, scores=None):
    toxic = np.array(toxic, dtype=bool)
    return Judgement(toxic.astype(float) if scores is None else np.array(scores), toxic)


def test_kappa_by_hand():
    # Of 50 texts both say yes to 20 and no to 15: agreement .7, by chance .5 * .6 + .5 * .4 = .5.
    one = np.array([True] * 25 + [False] * 25)
    other = np.array([True] * 20 + [False] * 5 + [True] * 10 + [False] * 15)
    assert kappa(one, other) == pytest.approx(0.4)
    assert kappa(one, one) == 1
    assert kappa(one, ~one) == pytest.approx(-1)
    assert np.isnan(kappa(np.ones(3, bool), np.ones(3, bool)))


def test_what_each_misses_by_hand():
    judges = combine({"a": judgement([[1, 0], [0, 0], [1, 1]]), "b": judgement([[1, 1], [0, 0], [0, 1]])})
    found = agreement(judges)
    # Together they find 4: a misses one of them, b another.
    assert found.missed["a"].value == found.missed["b"].value == 0.25
    assert set(found.missed) == {"a", "b"}
    pair, = found.pairs
    assert pair.evaluators == ("a", "b")
    assert pair.kappa.ci[0] <= pair.kappa.value <= pair.kappa.ci[1]


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1000))
def test_an_evaluator_misses_nothing_of_what_it_finds_alone_and_order_does_not_matter(seed):
    draw = np.random.default_rng(seed)
    scores = draw.random((2, 12, 3))
    a, b = judgement(scores[0] > 0.5, scores[0]), judgement(scores[0] > 0.8, scores[1])
    one, other = agreement({"a": a, "b": b}), agreement({"b": b, "a": a})
    assert one.missed["a"].value == 0  # finds all that b finds, and more
    assert one.missed == other.missed
    assert one.pairs[0].spearman.value == pytest.approx(stats.spearmanr(*(s.ravel() for s in scores)).statistic)
    assert one.pairs[0].kappa.value == pytest.approx(other.pairs[0].kappa.value)
    for estimate in (one.pairs[0].spearman, one.pairs[0].kappa, one.missed["b"]):
        assert estimate.ci[0] <= estimate.ci[1]


def test_the_interval_is_over_prompts_not_over_samples():
    """Samples of a prompt that always agree are no more evidence than one."""
    few = np.random.default_rng(0).random((40, 1)) > 0.5
    other = few ^ (np.random.default_rng(1).random((40, 1)) > 0.8)
    one, many = (agreement({"a": judgement(few.repeat(k, 1)), "b": judgement(other.repeat(k, 1))}) for k in (1, 20))
    assert many.pairs[0].kappa.ci == pytest.approx(one.pairs[0].kappa.ci)


def test_nothing_toxic():
    found = agreement({"a": judgement([[0], [0]]), "b": judgement([[0], [0]])})
    assert np.isnan(found.missed["a"].value)
    assert np.isnan(found.pairs[0].spearman.value)
    assert found.to_dict()["missed"]["a"] == {"value": None, "ci": [None, None]}  # JSON has no nan
