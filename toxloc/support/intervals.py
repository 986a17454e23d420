"""Bootstrap intervals and permutation tests: every interval and p-value of toxloc is computed here."""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float64
from scipy import stats

RESAMPLES = 2000
PERMUTATIONS = 9999
CONFIDENCE = 0.95
Interval = tuple[float, float]
Statistic = Callable[..., np.ndarray]  # one index array [draws, n] per sample -> values [..., draws]


def bootstrap(
    statistic: Statistic,
    sizes: int | Sequence[int],
    seed: int,
    *,
    resamples: int = RESAMPLES,
    at_once: int | None = None,
) -> Interval:
    """Compute the 95% percentile bootstrap interval of a statistic (Efron 1979).

    The statistic receives indices instead of data. To resample paired data together (two evaluations of the same
    prompts, the two texts of a pair), index both arrays with the same indices.

    Args:
        statistic: function of one integer array [draws, n] per sample, whose rows are resamples of 0..n-1. It returns
            the value for every row, float [draws].
        sizes: sample size n; or one size per sample, for samples that are resampled independently.
        seed: seed for the bootstrap draws.
        resamples: number of bootstrap draws.
        at_once: number of draws per call of `statistic`, to limit its memory; by default all draws.

    Returns:
        The 2.5% and 97.5% quantiles of the finite values; (nan, nan) if no value is finite.

    Example:
        >>> x = np.array([0.0, 0.0, 1.0, 3.0])
        >>> bootstrap(lambda i: x[i].mean(1), len(x), seed=0)
        (0.0, 2.25)
        >>> y = np.array([5.0, 7.0])                                     # a second sample, resampled independently
        >>> bootstrap(lambda i, j: y[j].mean(1) - x[i].mean(1), (len(x), len(y)), seed=0)
        (3.25, 6.75)
    """
    return central_interval(resampled(statistic, sizes, seed, resamples=resamples, at_once=at_once))


def resampled(
    statistic: Statistic,
    sizes: int | Sequence[int],
    seed: int,
    *,
    resamples: int = RESAMPLES,
    at_once: int | None = None,
) -> Float64[np.ndarray, "*statistics resamples"]:
    """Compute a statistic on bootstrap resamples; see `bootstrap` for the arguments.

    The statistic may return further axes before the last axis, to compute several statistics from the same draws.

    Example:
        >>> x = np.array([0.0, 0.0, 1.0, 3.0])
        >>> resampled(lambda i: np.stack([x[i].mean(1), x[i].max(1)]), len(x), seed=0).shape
        (2, 2000)
    """
    all_sizes = (sizes,) if isinstance(sizes, int) else tuple(sizes)

    def vectorized(*drawn: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(statistic(*_with_single(drawn, all_sizes)), dtype=np.float64)

    # scipy rejects a sample of one observation, which has only one resample.
    varying = [np.arange(n) for n in all_sizes if n > 1]
    if not varying:
        return np.repeat(vectorized(), resamples, axis=-1)
    with np.errstate(all="ignore"), warnings.catch_warnings():  # a statistic may be nan in some draws
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        result = stats.bootstrap(
            varying,
            vectorized,
            n_resamples=resamples,
            batch=at_once,
            vectorized=True,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    values: np.ndarray = result.bootstrap_distribution
    return values


def _with_single(drawn: Sequence[np.ndarray], sizes: Sequence[int]) -> list[np.ndarray]:
    """Return the index arrays of all samples; a sample of one observation always has the index 0."""
    remaining = iter(drawn)
    rows = len(drawn[0]) if drawn else 1
    return [next(remaining).astype(np.intp) if n > 1 else np.zeros((rows, 1), dtype=np.intp) for n in sizes]


def central_interval(values: Float64[np.ndarray, " n"]) -> Interval:
    """Compute the central 95% interval of the finite values; (nan, nan) if no value is finite.

    Example:
        >>> central_interval(np.arange(101.0))
        (2.5..., 97.5)
    """
    finite = values[np.isfinite(values)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def mean_interval(values: Float64[np.ndarray, " n"], seed: int = 0) -> Interval:
    """Compute the 95% percentile bootstrap interval of the mean of rates from 0 to 1, one rate per prompt.

    If all values are equal, every resample has the same mean and the bootstrap interval would have no width. In that
    case the interval is the value plus and minus the exact binomial bound for 0 events in n, clipped to [0, 1].

    Example:
        >>> mean_interval(np.zeros(100))                                 # 1 - 0.025 ** (1 / 100)
        (0.0, 0.0362...)
    """
    if np.ptp(values) == 0:
        edge = float(stats.beta.ppf(1 - (1 - CONFIDENCE) / 2, 1, len(values)))
        value = float(values[0])
        return max(0.0, value - edge), min(1.0, value + edge)
    return bootstrap(lambda index: values[index].mean(1), len(values), seed)


def interval_of_differences(differences: Float64[np.ndarray, " n"], seed: int) -> Interval:
    """Compute the 95% percentile bootstrap interval of the mean of paired differences, one difference per prompt."""
    return bootstrap(lambda index: differences[index].mean(1), len(differences), seed)


def sign_flip_p(differences: Float64[np.ndarray, " n"], seed: int) -> float:
    """Compute the two-sided p-value of the mean of paired differences with a sign-flip permutation test (Fisher 1935).

    Null hypothesis: each difference is as likely as the same difference with the opposite sign. The test uses all 2ⁿ
    patterns of signs if there are at most 9,999, and 9,999 random patterns otherwise. The p-value is 1 if all
    differences are 0 or n is 1.
    """
    if len(differences) == 1 or not differences.any():
        return 1.0
    result = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)
