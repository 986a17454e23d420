import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toxloc.localization.uncertainty import Uncertainty, Weights

sizes = st.integers(1, 9)


@given(sizes, sizes, st.integers(0, 99))
def test_a_bootstrap_draw_has_as_many_groups_of_each_side(n_toxic, n_neutral, seed):
    w = Weights.bootstrap(n_toxic, n_neutral, False, draws=5, seed=seed)
    assert (w.toxic.sum(1) == n_toxic).all()
    assert (w.neutral.sum(1) == n_neutral).all()
    assert (w.toxic[:, n_toxic:] == 0).all()
    assert (w.neutral[:, :n_toxic] == 0).all()


@given(sizes, sizes, st.integers(0, 99))
def test_a_shuffle_gives_every_group_one_label(n_toxic, n_neutral, seed):
    w = Weights.shuffled(n_toxic, n_neutral, False, draws=5, seed=seed)
    np.testing.assert_array_equal(w.toxic + w.neutral, 1)
    assert (w.toxic.sum(1) == n_toxic).all()


@given(sizes, st.integers(0, 99))
def test_pairs_stay_together(n, seed):
    w = Weights.bootstrap(n, n, True, draws=5, seed=seed)
    np.testing.assert_array_equal(w.toxic[:, :n], w.neutral[:, n:])
    w = Weights.shuffled(n, n, True, draws=5, seed=seed)
    np.testing.assert_array_equal(w.toxic[:, :n], w.neutral[:, n:])
    np.testing.assert_array_equal(w.toxic[:, :n] + w.toxic[:, n:], 1)


def test_uncertainty_by_hand():
    null = np.array([[0.0, 5.0], [2.0, 1.0], [4.0, 3.0], [2.0, 3.0]])  # means 2 and 3, both sd sqrt(2)
    resampled = np.linspace(2, 4, 101)[:, None] * [1.0, 2.0]
    u = Uncertainty.of(np.array([3.0, 9.0]), resampled, null, signed=False, bounds=(0.0, 12.0))
    np.testing.assert_allclose(u.low, [2 * 3 - 3.95, 2 * 9 - 7.9])
    np.testing.assert_allclose(u.high, [2 * 3 - 2.05, 12.0])
    np.testing.assert_allclose(u.z, [1 / np.sqrt(2), 6 / np.sqrt(2)])
    # Counted as at least as large: in layer 0 the score 4.0 and the observed labels, in layer 1 the observed labels.
    np.testing.assert_allclose(u.p, [2 / 5, 1 / 5])
    # For layer 0, draws 0 and 2 also count, whose z is as large in some layer.
    np.testing.assert_allclose(u.p_adjusted, [3 / 5, 1 / 5])


def test_a_signed_score_is_tested_on_both_sides():
    null = np.linspace(-1, 1, 99)[:, None]
    low = Uncertainty.of(np.array([-2.0]), null, null, signed=True)
    assert low.p[0] == pytest.approx(0.01)
    assert Uncertainty.of(np.array([-2.0]), null, null, signed=False).p[0] == 1


def mean_difference(w, values):
    return (w.toxic @ values / w.toxic.sum(1, keepdims=True)) - (w.neutral @ values / w.neutral.sum(1, keepdims=True))


@pytest.mark.parametrize("paired", [True, False])
def test_p_values_and_intervals_have_the_right_coverage(paired):
    """Without a difference, p < .1 in a tenth of the cases, for single layers and for the family of layers.

    The 95% interval contains the true difference of 0 in about 95% of the cases.
    """
    rng = np.random.default_rng(0)
    n, layers, cases = 30, 4, 300
    small = family = covered = 0
    boot, shuffled = Weights.bootstrap(n, n, paired, 200, 1), Weights.shuffled(n, n, paired, 200, 1)
    observed = Weights.observed(n, n)
    for _ in range(cases):
        values = rng.standard_normal((2 * n, layers))
        if paired:
            values += np.tile(rng.standard_normal((n, layers)), (2, 1))  # a part that both halves of a pair share
        u = Uncertainty.of(
            mean_difference(observed, values)[0],
            mean_difference(boot, values),
            mean_difference(shuffled, values),
            signed=True,
        )
        small += (u.p < 0.1).sum()
        family += (u.p_adjusted < 0.1).any()
        covered += ((u.low <= 0) & (u.high >= 0)).sum()
    assert small / cases / layers == pytest.approx(0.1, abs=0.03)
    assert family / cases == pytest.approx(0.1, abs=0.05)
    assert covered / cases / layers == pytest.approx(0.945, abs=0.03)


def test_the_interval_corrects_the_bias_of_a_norm():
    """The norm of a noisy mean is too large; the interval contains the norm of the true mean."""
    rng = np.random.default_rng(0)
    n, d, truth = 40, 60, 1.0
    centre = np.full(d, truth / np.sqrt(d))
    above = covered = 0
    for _ in range(100):
        values = centre + rng.standard_normal((n, d)) * 0.5
        draws = rng.multinomial(n, np.full(n, 1 / n), size=200) / n
        score = np.array([np.linalg.norm(values.mean(0))])
        resampled = np.linalg.norm(draws @ values, axis=1)[:, None]
        u = Uncertainty.of(score, resampled, resampled, signed=False)
        above += score[0] > truth
        covered += u.low[0] <= truth <= u.high[0]
    assert above > 90
    assert covered > 80


def test_shuffles_that_give_the_observed_score_count_as_large():
    """Rounding must not hide ties: of 4 shuffles, 3 restore the score, and the observed labels count too.

    The fourth is farther from the mean, which counts only if negative values are meaningful.
    """
    score = np.array([0.3])
    null = np.array([[0.1 + 0.2], [0.3], [0.3], [0.0]])
    for signed, expected in ((False, 4 / 5), (True, 1)):
        uncertainty = Uncertainty.of(score, np.tile(score, (5, 1)), null, signed)
        np.testing.assert_allclose(uncertainty.p, [expected])
        np.testing.assert_allclose(uncertainty.p_adjusted, [expected])


def test_a_null_distribution_of_a_single_value_gives_no_significance():
    uncertainty = Uncertainty.of(np.array([2.0, 5.0]), np.full((3, 2), 2.0), np.full((4, 2), 1.0), signed=False)
    np.testing.assert_array_equal(uncertainty.z, [0, 0])
    np.testing.assert_array_equal(uncertainty.p, [1, 1])
    np.testing.assert_array_equal(uncertainty.p_adjusted, [1, 1])
