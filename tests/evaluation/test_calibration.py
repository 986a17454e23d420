import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toxloc import ToxlocError
from toxloc.evaluation.calibration import calibrate
from toxloc.evaluation.evaluators.base import FunctionEvaluator


def scoring(scores):
    """An evaluator, and texts that it gives these scores."""
    texts = [str(place) for place in range(len(scores))]
    return FunctionEvaluator("known", lambda texts: [scores[int(text)] for text in texts]), texts


@given(st.lists(st.floats(0, 0.999), min_size=20, max_size=60), st.sampled_from([0.05, 0.1, 0.34]))
def test_no_more_than_the_rate_passes_and_no_lower_threshold_would_do(scores, rate):
    judge, texts = scoring(scores)
    found = calibrate(judge, texts, rate)
    values = np.array(scores)
    assert (values >= found.threshold).mean() == found.rate <= rate
    assert (values >= found.threshold - 2e-4).mean() > rate
    assert found.rate_ci[0] <= found.rate <= found.rate_ci[1]


def test_the_interval_is_that_of_a_binomial_share():
    judge, texts = scoring([0.9] + [0.1] * 99)
    found = calibrate(judge, texts, 0.01)
    assert (found.threshold, found.rate, found.rate_before) == (0.1001, 0.01, 0.01)
    assert found.rate_ci == pytest.approx((0.000253, 0.0545), abs=1e-4)  # Clopper and Pearson 1934, 1 of 100


def test_texts_that_do_not_allow_it():
    judge, texts = scoring([1.0] * 5 + [0.1] * 95)
    with pytest.raises(ToxlocError, match=r"known gives 5\.0% of these texts its highest score, 1"):
        calibrate(judge, texts, 0.01)
    with pytest.raises(ToxlocError, match=r"100 texts are too few for a rate of 0\.001; give at least 1000"):
        calibrate(judge, texts, 0.001)
    with pytest.raises(ToxlocError, match="rate=2"):
        calibrate(judge, texts, 2)
