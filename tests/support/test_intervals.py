from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from toxloc.support.intervals import (
    RESAMPLES,
    bootstrap,
    central_interval,
    interval_of_differences,
    mean_interval,
    resampled,
    sign_flip_p,
)


def drawn(seed, n, resamples=RESAMPLES):
    """Draw the bootstrap indices of all resamples in one call, independently of scipy."""
    return np.random.default_rng(seed).integers(n, size=(resamples, n))


def test_the_draws_equal_those_of_a_plain_loop_exactly():
    x = np.random.default_rng(5).normal(size=37)
    means = [x[row].mean() for row in drawn(3, 37)]
    expected = tuple(np.quantile(np.array(means), [(1 - 0.95) / 2, (1 + 0.95) / 2]))
    assert RESAMPLES == 2000
    assert interval_of_differences(x, 3) == expected
    assert bootstrap(lambda index: x[index].mean(1), 37, 3) == expected


@given(st.integers(1, 500))
def test_the_number_of_draws_per_call_does_not_change_the_values(at_once):
    x = np.random.default_rng(0).normal(size=11)
    draws_per_call = []

    def mean(index):
        draws_per_call.append(len(index))
        return x[index].mean(1)

    values = resampled(mean, 11, seed=8, resamples=300, at_once=at_once)
    assert max(draws_per_call) == min(at_once, 300)
    assert (values == x[drawn(8, 11, 300)].mean(1)).all()


def test_samples_of_different_sizes_are_drawn_independently():
    x, y = np.arange(20.0), np.arange(7.0) ** 2
    rng = np.random.default_rng(4)
    i, j = rng.integers(20, size=(RESAMPLES, 20)), rng.integers(7, size=(RESAMPLES, 7))
    values = resampled(lambda i, j: y[j].mean(1) - x[i].mean(1), (20, 7), 4)
    assert (values == y[j].mean(1) - x[i].mean(1)).all()
    correlation = np.corrcoef(x[i].mean(1), y[j].mean(1))[0, 1]
    assert abs(correlation) < 0.1


def test_a_sample_of_one_observation_has_one_resample():
    x, y = np.array([0.0, 1.0]), np.array([7.0])
    assert bootstrap(lambda index: y[index].mean(1), 1, 0) == (7, 7)
    assert bootstrap(lambda i, j: x[i].mean(1) + y[j].mean(1), (2, 1), 0) == (7, 8)
    assert bootstrap(lambda i, j: y[i].mean(1) + x[j].mean(1), (1, 2), 0) == (7, 8)


def test_several_statistics_of_one_observation_have_their_value_in_every_draw():
    x = np.array([3.0])
    values = resampled(lambda i: np.stack([x[i].mean(1), -x[i].max(1)]), 1, seed=0)
    assert values.shape == (2, RESAMPLES)
    assert (values == [[3.0], [-3.0]]).all()


def test_several_statistics_use_the_same_draws():
    x = np.random.default_rng(1).normal(size=9)
    mean, twice = resampled(lambda index: np.stack([x[index].mean(1), 2 * x[index].mean(1)]), 9, 0, at_once=70)
    assert len(mean) == RESAMPLES
    assert (twice == 2 * mean).all()


@pytest.mark.filterwarnings("error")
def test_draws_in_which_a_statistic_is_undefined_are_left_out():
    a, b = np.array([1.0, 1.0, 1.0]), np.array([0.0, 1.0, 1.0])
    index = drawn(0, 3)
    ratios = np.array([3 / b[row].sum() for row in index if b[row].sum()])
    assert len(ratios) < RESAMPLES
    expected = tuple(np.quantile(ratios, [0.025, 0.975]))
    assert bootstrap(lambda index: a[index].sum(1) / b[index].sum(1), 3, 0) == pytest.approx(expected)
    assert np.isnan(bootstrap(lambda index: np.full(len(index), np.nan), 3, 0)).all()


def test_the_central_interval_leaves_out_nan_and_infinity():
    assert central_interval(np.append(np.arange(101.0), [np.nan, np.inf])) == pytest.approx((2.5, 97.5))


def test_intervals_have_their_nominal_coverage():
    rng = np.random.default_rng(0)
    hits = sum(
        low <= 0.3 <= high
        for low, high in (mean_interval(rng.binomial(5, 0.3, size=80) / 5, seed=i) for i in range(200))
    )
    assert 0.89 <= hits / 200 <= 0.99


def test_equal_values_still_have_an_interval_with_width():
    low, high = mean_interval(np.zeros(100))
    assert low == 0
    assert high == pytest.approx(1 - 0.025 ** (1 / 100))  # no event in 100 (Clopper and Pearson 1934)
    low, high = mean_interval(np.ones(100))
    assert (low, high) == (pytest.approx(0.025 ** (1 / 100)), 1)
    assert mean_interval(np.zeros(1)) == (0, pytest.approx(0.975))


def test_p_is_the_share_of_sign_patterns_with_a_mean_at_least_as_extreme():
    differences = np.array([1.0, 0.5, 0.5, 0, -0.25, 0.75, 1, 1])
    means = [abs((differences * np.array(signs)).mean()) for signs in product([1, -1], repeat=8)]
    p = np.mean(np.array(means) >= differences.mean() - 1e-12)
    assert sign_flip_p(differences, 0) == pytest.approx(p)
    assert sign_flip_p(-differences, 1) == pytest.approx(p)
    assert sign_flip_p(np.zeros(8), 0) == sign_flip_p(np.ones(1), 0) == 1
    assert sign_flip_p(np.ones(10), 0) == pytest.approx(2 / 2**10)


def test_p_of_many_differences_is_near_the_normal_approximation():
    differences = np.random.default_rng(2).normal(0.2, 1, size=100)
    z = differences.sum() / np.sqrt((differences**2).sum())
    assert 0.02 < sign_flip_p(differences, 0) == pytest.approx(2 * norm.sf(abs(z)), abs=0.01)


def test_p_is_uniform_under_the_null_hypothesis():
    rng = np.random.default_rng(0)
    small = [sign_flip_p(rng.normal(size=30), seed=i) < 0.1 for i in range(60)]
    assert 1 <= sum(small) <= 13  # 6 are expected; a binomial count is from 1 to 13 with probability 99.6%


def test_the_default_seed_is_zero():
    values = np.random.default_rng(5).uniform(size=12)
    assert mean_interval(values) == mean_interval(values, seed=0) != mean_interval(values, seed=1)
