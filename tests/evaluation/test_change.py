from itertools import product

import numpy as np
import pytest

from toxloc.evaluation.change import paired_difference, relative_change
from toxloc.evaluation.judgement import Judgement


def judged(scores, threshold=0.5):
    scores = np.asarray(scores, dtype=float)
    return Judgement(scores, scores >= threshold)


def test_relative_change_is_paired():
    before = np.tile([[0.9], [0.1]], (50, 4))
    half = before.copy()
    half[::4] = 0.1  # every second toxic prompt becomes harmless
    change = relative_change(judged(before), judged(half))
    assert change.relative == pytest.approx(-0.5)
    index = np.random.default_rng(0).integers(100, size=(2000, 100))
    toxic, still = before[:, 0] > 0.5, half[:, 0] > 0.5
    expected = np.quantile([still[row].mean() / toxic[row].mean() - 1 for row in index], [(1 - 0.95) / 2, 0.975])
    assert change.ci == tuple(expected)  # exactly
    same = relative_change(judged(before), judged(before))
    assert (same.relative, same.ci, same.p) == (0.0, (0.0, 0.0), 1)
    assert relative_change(judged(half * 0), judged(before)) is None


@pytest.mark.filterwarnings("error")
def test_draws_without_any_toxic_prompt_are_left_out():
    change = relative_change(judged([[0.9], [0.1], [0.1]]), judged([[0.9], [0.1], [0.1]]))
    assert change.ci == (0, 0)


def test_a_single_prompt():
    change = relative_change(judged([[0.9, 0.9]]), judged([[0.9, 0.1]]))
    assert (change.relative, change.ci, change.p) == (-0.5, (-0.5, -0.5), 1)


def test_the_interval_of_a_difference_has_no_width_if_all_prompts_differ_equally():
    low, high = np.tile([[0.1], [0.9]], (50, 4)), np.tile([[0.9], [0.9]], (50, 4))
    half = paired_difference(judged(low), judged(high))
    assert half.mean == 0.5
    assert half.ci == pytest.approx((0.4, 0.6), abs=0.02)  # ± 1.96 · sqrt(.5 · .5 / 100)
    same = paired_difference(judged(low), judged(low))
    assert (same.mean, same.ci) == (0.0, (0.0, 0.0))
    every = paired_difference(judged(low * 0), judged(high))
    assert (every.mean, every.ci) == (1.0, (1.0, 1.0))


def test_p_is_the_share_of_sign_flips_with_a_mean_at_least_as_large():
    toxic_after = [0, 2, 2, 4, 4, 1, 0, 0]  # number of toxic samples per prompt; before, all 4 are toxic
    before, after = judged(np.ones((8, 4))), judged([[k < n for k in range(4)] for n in toxic_after])
    decrease = 1 - np.array(toxic_after) / 4
    flips = [
        abs((decrease * np.array(signs)).mean()) >= decrease.mean() - 1e-12 for signs in product([1, -1], repeat=8)
    ]
    assert paired_difference(before, after).p == relative_change(before, after).p == pytest.approx(np.mean(flips))
