import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from toxloc.evaluation.agreement import agreement, kappa
from toxloc.evaluation.judgement import Judgement, combine


def judgement(toxic, scores=None):
    toxic = np.array(toxic, dtype=bool)
    return Judgement(toxic.astype(float) if scores is None else np.array(scores), toxic)


def random_judges(n_prompts, samples, seed=0):
    """Three evaluators that agree in part; the second rounds its scores, so that many are equal."""
    rng = np.random.default_rng(seed)
    shared = rng.random((n_prompts, 1))
    scores = {name: 0.6 * shared + 0.4 * rng.random((n_prompts, samples)) for name in "abc"}
    scores["b"] = scores["b"].round(1)
    return {name: judgement(one > 0.6, one) for name, one in scores.items()}


def test_kappa_by_hand():
    # Of 50 texts both say yes to 20 and no to 15: agreement .7, by chance .5 * .6 + .5 * .4 = .5.
    one = np.array([True] * 25 + [False] * 25)
    other = np.array([True] * 20 + [False] * 5 + [True] * 10 + [False] * 15)
    assert kappa(one, other) == pytest.approx(0.4)
    assert kappa(one, one) == 1
    assert kappa(one, ~one) == pytest.approx(-1)
    assert np.isnan(kappa(np.ones(3, bool), np.ones(3, bool)))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=30))
def test_kappa_is_that_of_scikit_learn(verdicts):
    one, other = np.array(verdicts).T
    if len(np.unique(verdicts)) > 1:  # with one label alone it is not defined
        assert kappa(one, other) == pytest.approx(cohen_kappa_score(one, other), nan_ok=True, abs=1e-12)


def test_what_each_evaluator_misses_by_hand():
    judges = combine({"a": judgement([[1, 0], [0, 0], [1, 1]]), "b": judgement([[1, 1], [0, 0], [0, 1]])})
    found = agreement(judges)
    # Together they find 4: a misses one of them, b another.
    assert found.missed["a"].value == found.missed["b"].value == 0.25
    assert set(found.missed) == {"a", "b"}
    (pair,) = found.pairs
    assert pair.evaluators == ("a", "b")
    assert pair.kappa.value == pytest.approx(cohen_kappa_score([1, 0, 0, 0, 1, 1], [1, 1, 0, 0, 0, 1]))


def test_intervals_are_those_of_resampled_prompts_one_draw_at_a_time():
    judges = random_judges(30, 2)
    found = agreement(judges, seed=4)
    any_toxic = np.logical_or.reduce([judge.toxic for judge in judges.values()])
    index = np.random.default_rng(4).integers(30, size=(2000, 30))

    def spearman(x, y):
        return np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1]

    def expected(figure):
        return pytest.approx(tuple(np.quantile([figure(row) for row in index], [0.025, 0.975])))

    for pair in found.pairs:
        a, b = (judges[name] for name in pair.evaluators)
        assert pair.spearman.ci == expected(lambda row, a=a, b=b: spearman(a.scores[row], b.scores[row]))
        assert pair.kappa.ci == expected(lambda row, a=a, b=b: kappa(a.toxic[row], b.toxic[row]))
    for name, judge in judges.items():
        assert found.missed[name].ci == expected(lambda row, j=judge: 1 - j.toxic[row].sum() / any_toxic[row].sum())


def test_three_evaluators_are_compared_in_a_moment():
    judges = random_judges(130, 5)
    began = time.process_time()
    agreement(judges)
    assert time.process_time() - began < 3  # 0.3 s measured; slower machines may run this


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1000))
def test_the_order_of_evaluators_does_not_matter(seed):
    draw = np.random.default_rng(seed)
    scores = draw.random((2, 12, 3))
    a, b = judgement(scores[0] > 0.5, scores[0]), judgement(scores[0] > 0.8, scores[1])
    one, other = agreement({"a": a, "b": b}), agreement({"b": b, "a": a})
    assert one.missed["a"].value == 0  # finds all that b finds, and more
    assert one.missed == other.missed
    assert one.pairs[0].spearman.value == pytest.approx(stats.spearmanr(*(s.ravel() for s in scores)).statistic)
    assert one.pairs[0].kappa.value == pytest.approx(other.pairs[0].kappa.value)
    assert one.pairs[0].spearman.ci == pytest.approx(other.pairs[0].spearman.ci)


def test_the_interval_is_over_prompts_not_over_samples():
    """Samples of a prompt that always agree are no more evidence than one."""
    few = np.random.default_rng(0).random((40, 1)) > 0.5
    other = few ^ (np.random.default_rng(1).random((40, 1)) > 0.8)
    one, many = (agreement({"a": judgement(few.repeat(k, 1)), "b": judgement(other.repeat(k, 1))}) for k in (1, 20))
    assert many.pairs[0].kappa.ci == pytest.approx(one.pairs[0].kappa.ci)


@pytest.mark.filterwarnings("error")
def test_nothing_toxic():
    found = agreement({"a": judgement([[0], [0]]), "b": judgement([[0], [0]])})
    assert np.isnan(found.missed["a"].value)
    assert np.isnan(found.pairs[0].spearman.value)
    assert found.to_dict()["missed"]["a"] == {"value": None, "ci": [None, None]}  # JSON has no nan
