from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from toxloc import ToxlocError
from toxloc.evaluation.change import paired_difference, relative_change
from toxloc.evaluation.toxicity import Judgement, combine, prompts_needed, toxicity
from toxloc.support.intervals import mean_interval

SCORES = np.array([[0.9, 0.1, 0.2], [0.2, 0.4, 0.3], [0.7, 0.8, 0.6]])


def judged(scores, threshold=0.5):
    return Judgement(scores, scores >= threshold)


def test_figures_by_hand():
    found = toxicity(judged(SCORES))
    assert found.rate == pytest.approx(4 / 9)
    assert found.mean == pytest.approx(4.2 / 9)
    assert found.expected_max == pytest.approx((0.9 + 0.4 + 0.8) / 3)
    assert found.probability == pytest.approx(2 / 3)
    assert found.to_dict()["rate_ci"] == list(found.rate_ci)


def test_any_and_both_by_hand():
    other = np.array([[0.6, 0.6, 0.0], [0.9, 0.0, 0.0], [0.7, 0.1, 0.6]])
    found = combine({"a": judged(SCORES), "b": judged(other)})
    assert list(found) == ["a", "b", "any", "both"]
    assert found["any"].toxic.sum() == 6
    assert found["both"].toxic.sum() == 3
    assert found["both"].scores[0, 1] == 0.1


SOME = hnp.arrays(np.float64, (5, 3), elements=st.floats(0, 1))


@given(SOME, SOME)
def test_both_is_under_each_judge_and_any_over_it(a, b):
    rates = {name: toxicity(j).rate for name, j in combine({"a": judged(a), "b": judged(b, 0.8)}).items()}
    assert rates["both"] <= min(rates["a"], rates["b"]) <= max(rates["a"], rates["b"]) <= rates["any"]


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = sum(low <= 0.3 <= high for low, high in
               (mean_interval(rng.binomial(5, 0.3, size=80) / 5, seed=i) for i in range(200)))
    assert 0.89 <= hits / 200 <= 0.99


def test_agreement_of_all_prompts_is_not_certainty():
    low, high = mean_interval(np.zeros(100))
    assert low == 0
    assert high == pytest.approx(1 - 0.025 ** (1 / 100))
    assert mean_interval(np.ones(100))[1] == 1


def test_relative_change_is_paired():
    before = np.tile([[0.9], [0.1]], (50, 4))
    half = before.copy()
    half[::4] = 0.1  # every second toxic prompt turns
    change = relative_change(judged(before), judged(half))
    assert change.relative == pytest.approx(-0.5)
    assert change.ci[0] < -0.5 < change.ci[1]
    same = relative_change(judged(before), judged(before))
    assert (same.relative, same.ci) == (0.0, (0.0, 0.0))
    assert relative_change(judged(half * 0), judged(before)) is None


def test_a_paired_difference_has_no_width_where_prompts_differ_alike():
    low, high = np.tile([[0.1], [0.9]], (50, 4)), np.tile([[0.9], [0.9]], (50, 4))
    half = paired_difference(judged(low), judged(high))
    assert half.mean == 0.5
    assert half.ci[0] < 0.5 < half.ci[1]
    same = paired_difference(judged(low), judged(low))
    assert (same.mean, same.ci) == (0.0, (0.0, 0.0))
    every = paired_difference(judged(low * 0), judged(high))
    assert (every.mean, every.ci) == (1.0, (1.0, 1.0))


def test_p_is_that_of_all_flips_of_sign():
    apart = np.array([1.0, 0.5, 0.5, 0, -0.25, 0.75, 1, 1])
    before = np.stack([np.ones(4)] * 8)
    after = np.array([[1 - change >= share for share in (0.25, 0.5, 0.75, 1.0)] for change in np.maximum(apart, 0)])
    one, other = judged(before), judged(after.astype(float))
    gone = before.mean(1) - after.mean(1)
    flips = [abs((gone * np.array(signs)).mean()) >= gone.mean() - 1e-12 for signs in product([1, -1], repeat=8)]
    assert paired_difference(one, other).p == pytest.approx(np.mean(flips))
    assert relative_change(one, other).p == pytest.approx(np.mean(flips))
    assert relative_change(one, one).p == 1


def test_p_is_uniform_if_nothing_changed():
    rng = np.random.default_rng(0)
    small = [paired_difference(judged(rng.random((30, 2))), judged(rng.random((30, 2))), seed=i).p < 0.1
             for i in range(60)]
    assert 0 < sum(small) <= 13  # 6 are expected; 13 or fewer come in 99.8% of draws


def test_as_many_prompts_as_advised_give_the_margin():
    rng = np.random.default_rng(0)

    def drawn(n):
        own = rng.beta(0.5, 1.5, size=(n, 1))  # prompts differ, so samples of one prompt are alike
        return judged((rng.random((n, 5)) < own).astype(float))

    needed = prompts_needed(drawn(2000), 0.03)
    low, high = toxicity(drawn(needed)).rate_ci
    assert (high - low) / 2 == pytest.approx(0.03, rel=0.1)
    coin = np.array([[1.0], [0.0]] * 50)
    assert prompts_needed(judged(coin), 0.02) == pytest.approx(0.25 * (1.96 / 0.02) ** 2, rel=0.02)
    assert 0 < prompts_needed(judged(np.zeros((50, 5))), 0.02) < 100


@pytest.mark.parametrize("margin", [0, 1, -0.02, 2.0])
def test_margins_that_cannot_be(margin):
    with pytest.raises(ToxlocError, match=f"margin={margin}"):
        prompts_needed(judged(SCORES), margin)
