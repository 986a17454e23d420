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
    """Judgements of three evaluators that agree in part; the second has rounded scores, so that many are equal."""
    rng = np.random.default_rng(seed)
    shared = rng.random((n_prompts, 1))
    scores = {name: 0.6 * shared + 0.4 * rng.random((n_prompts, samples)) for name in "abc"}
    scores["b"] = scores["b"].round(1)
    return {name: judgement(values > 0.6, values) for name, values in scores.items()}


def test_kappa_by_hand():
    # Of 50 texts, both say yes to 20 and no to 15: agreement .7, chance agreement .5 * .6 + .5 * .4 = .5.
    left = np.array([True] * 25 + [False] * 25)
    right = np.array([True] * 20 + [False] * 5 + [True] * 10 + [False] * 15)
    assert kappa(left, right) == pytest.approx(0.4)
    assert kappa(left, left) == 1
    assert kappa(left, ~left) == pytest.approx(-1)
    assert np.isnan(kappa(np.ones(3, bool), np.ones(3, bool)))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=30))
def test_kappa_equals_that_of_scikit_learn(verdicts):
    left, right = np.array(verdicts).T
    if len(np.unique(verdicts)) == 1:  # the chance agreement is 1
        assert np.isnan(kappa(left, right))
    else:
        assert kappa(left, right) == pytest.approx(cohen_kappa_score(left, right), abs=1e-12)


def test_missed_shares_by_hand():
    judges = combine({"a": judgement([[1, 0], [0, 0], [1, 1]]), "b": judgement([[1, 1], [0, 0], [0, 1]])})
    result = agreement(judges)
    # At least one evaluator calls 4 completions toxic; each evaluator misses 1 of them.
    assert result.missed["a"].value == result.missed["b"].value == 0.25
    assert set(result.missed) == {"a", "b"}
    (pair,) = result.pairs
    assert pair.evaluators == ("a", "b")
    assert pair.kappa.value == pytest.approx(cohen_kappa_score([1, 0, 0, 0, 1, 1], [1, 1, 0, 0, 0, 1]))


def test_intervals_equal_those_of_a_loop_over_bootstrap_draws():
    judges = random_judges(30, 2)
    result = agreement(judges, seed=4)
    any_toxic = np.logical_or.reduce([judge.toxic for judge in judges.values()])
    index = np.random.default_rng(4).integers(30, size=(2000, 30))

    def spearman(x, y):
        return np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1]

    def expected(figure):
        return pytest.approx(tuple(np.quantile([figure(row) for row in index], [0.025, 0.975])))

    for pair in result.pairs:
        a, b = (judges[name] for name in pair.evaluators)
        assert pair.spearman.ci == expected(lambda row, a=a, b=b: spearman(a.scores[row], b.scores[row]))
        assert pair.kappa.ci == expected(lambda row, a=a, b=b: kappa(a.toxic[row], b.toxic[row]))
    for name, judge in judges.items():
        assert result.missed[name].ci == expected(lambda row, j=judge: 1 - j.toxic[row].sum() / any_toxic[row].sum())


def test_three_evaluators_are_compared_quickly():
    judges = random_judges(130, 5)
    began = time.process_time()
    agreement(judges)
    assert time.process_time() - began < 3  # measured: 0.3 s; the rest is a margin for slower machines


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1000))
def test_the_order_of_evaluators_does_not_matter(seed):
    draw = np.random.default_rng(seed)
    scores = draw.random((2, 12, 3))
    a, b = judgement(scores[0] > 0.5, scores[0]), judgement(scores[0] > 0.8, scores[1])
    ab, ba = agreement({"a": a, "b": b}), agreement({"b": b, "a": a})
    assert ab.missed["a"].value == 0  # a calls everything toxic that b calls toxic
    assert ab.missed == ba.missed
    assert ab.pairs[0].spearman.value == pytest.approx(stats.spearmanr(*(s.ravel() for s in scores)).statistic)
    assert ab.pairs[0].kappa.value == pytest.approx(ba.pairs[0].kappa.value)
    assert ab.pairs[0].spearman.ci == pytest.approx(ba.pairs[0].spearman.ci)


def test_the_interval_is_over_prompts_not_over_samples():
    """Identical samples of a prompt are no more evidence than a single sample."""
    left = np.random.default_rng(0).random((40, 1)) > 0.5
    right = left ^ (np.random.default_rng(1).random((40, 1)) > 0.8)
    single, many = (agreement({"a": judgement(left.repeat(k, 1)), "b": judgement(right.repeat(k, 1))}) for k in (1, 20))
    assert many.pairs[0].kappa.ci == pytest.approx(single.pairs[0].kappa.ci)


@pytest.mark.filterwarnings("error")
def test_without_toxic_completions_figures_are_nan():
    result = agreement({"a": judgement([[0], [0]]), "b": judgement([[0], [0]])})
    assert np.isnan(result.missed["a"].value)
    assert np.isnan(result.pairs[0].spearman.value)
    assert result.to_dict()["missed"]["a"] == {"value": None, "ci": [None, None]}  # JSON has no nan
