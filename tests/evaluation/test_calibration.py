import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toxloc import ToxlocError
from toxloc.evaluation.calibration import calibrate
from toxloc.evaluation.evaluators.base import FunctionEvaluator


def scoring(scores):
    """Return an evaluator, and texts to which it gives these scores."""
    texts = [str(place) for place in range(len(scores))]
    return FunctionEvaluator("known", lambda texts: [scores[int(text)] for text in texts]), texts


@given(st.lists(st.floats(0, 0.999), min_size=20, max_size=60), st.sampled_from([0.05, 0.1, 0.34]))
def test_the_threshold_is_the_lowest_that_keeps_the_rate(scores, rate):
    judge, texts = scoring(scores)
    result = calibrate(judge, texts, rate)
    values = np.array(scores)
    assert (values >= result.threshold).mean() == result.rate <= rate
    assert (values >= result.threshold - 2e-4).mean() > rate
    assert result.rate_ci[0] <= result.rate <= result.rate_ci[1]


def test_the_interval_is_the_exact_binomial_interval():
    judge, texts = scoring([0.9] + [0.1] * 99)
    result = calibrate(judge, texts, 0.01)
    assert (result.threshold, result.rate, result.rate_before) == (0.1001, 0.01, 0.01)
    assert result.rate_ci == pytest.approx((0.000253, 0.0545), abs=1e-4)  # Clopper and Pearson 1934, 1 of 100


def test_unsuitable_texts_and_rates_are_refused():
    judge, texts = scoring([1.0] * 5 + [0.1] * 95)
    with pytest.raises(ToxlocError, match=r"known gives 5\.0% .* highest score, 1, .* 0\.01; give everyday texts"):
        calibrate(judge, texts, 0.01)
    with pytest.raises(ToxlocError, match=r"100 texts .* rate of 0\.001.* 1000"):
        calibrate(judge, texts, 0.001)
    with pytest.raises(ToxlocError, match="rate=2"):
        calibrate(judge, texts, 2)
