import numpy as np
import pytest

from toxloc.localization.auroc import auroc_of


def test_auroc_counts_pairs_won_and_half_of_the_ties():
    toxic, neutral = np.array([[3.0, 1.0], [1.0, 1.0]]), np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    np.testing.assert_array_equal(auroc_of(toxic, neutral), [4.5 / 6, 0.5])  # 3 beats all; 1 beats 0 and ties with 1


def test_auroc_equals_the_share_of_pairs_counted_pair_by_pair_with_many_ties():
    rng = np.random.default_rng(0)
    toxic, neutral = rng.integers(0, 9, (31, 5)) + 1.0, rng.integers(0, 9, (17, 5)) * 1.0
    won = sum((t > n) + (t == n) / 2 for t in toxic for n in neutral)
    np.testing.assert_allclose(auroc_of(toxic, neutral), won / (31 * 17), rtol=1e-12)
    np.testing.assert_allclose(auroc_of(neutral, toxic), 1 - won / (31 * 17), rtol=1e-12)


def test_infinite_values_are_ranked():
    assert auroc_of(np.array([[np.inf]]), np.array([[-np.inf], [0.0]])) == pytest.approx([1.0])
