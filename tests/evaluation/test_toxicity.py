import numpy as np
import pytest

from toxloc.evaluation.judgement import Judgement
from toxloc.evaluation.toxicity import toxicity

SCORES = np.array([[0.9, 0.1, 0.2], [0.2, 0.4, 0.3], [0.7, 0.8, 0.6]])


def test_figures_by_hand():
    figures = toxicity(Judgement(SCORES, SCORES >= 0.5))
    assert figures.rate == pytest.approx(4 / 9)
    assert figures.mean == pytest.approx(4.2 / 9)
    assert figures.expected_max == pytest.approx((0.9 + 0.4 + 0.8) / 3)
    assert figures.probability == pytest.approx(2 / 3)
    assert figures.to_dict()["rate_ci"] == list(figures.rate_ci)


def test_intervals_equal_a_bootstrap_by_hand():
    figures = toxicity(Judgement(SCORES, SCORES >= 0.5), seed=6)
    index = np.random.default_rng(6).integers(3, size=(2000, 3))
    for name, per_prompt in (
        ("rate", [1 / 3, 0, 1]),
        ("mean", SCORES.mean(1)),
        ("expected_max", [0.9, 0.4, 0.8]),
        ("probability", [1, 0, 1]),
    ):
        means = [np.mean([per_prompt[i] for i in row]) for row in index]
        assert getattr(figures, f"{name}_ci") == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
