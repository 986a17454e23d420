"""Bootstrap intervals and permutation tests."""

import numpy as np
from jaxtyping import Float64
from scipy import stats

RESAMPLES = 2000
PERMUTATIONS = 9999
CONFIDENCE = 0.95
Interval = tuple[float, float]


def mean_interval(values: Float64[np.ndarray, " n"], seed: int = 0) -> Interval:
    """95% percentile bootstrap interval of a mean of rates from 0 to 1, one per prompt.

    Where all prompts agree on 0 or on 1, resampling has nothing to vary and would claim certainty; the exact
    binomial bound on the share of prompts is given instead.
    """
    n = len(values)
    if np.ptp(values) == 0:
        edge = float(stats.beta.ppf(1 - (1 - CONFIDENCE) / 2, 1, n))
        value = float(values[0])
        return max(0.0, value - edge), min(1.0, value + edge)
    result = stats.bootstrap((values,), np.mean, n_resamples=RESAMPLES, confidence_level=CONFIDENCE,
                             method="percentile", vectorized=True, rng=np.random.default_rng(seed))
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def interval_of_differences(apart: Float64[np.ndarray, " n"], seed: int) -> Interval:
    """95% percentile bootstrap interval of the mean of differences, one per prompt."""
    draws = np.random.default_rng(seed).integers(len(apart), size=(RESAMPLES, len(apart)))
    low, high = np.quantile(apart[draws].mean(1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def sign_flip_p(apart: Float64[np.ndarray, " n"], seed: int) -> float:
    """Two-sided p if differences, one per prompt, are as likely to have the other sign."""
    if not apart.any():
        return 1.0
    found = stats.permutation_test((apart,), np.mean, permutation_type="samples", vectorized=True,
                                   n_resamples=PERMUTATIONS, rng=np.random.default_rng(seed))
    return float(found.pvalue)
