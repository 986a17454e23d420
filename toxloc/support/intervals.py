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
Figure = Callable[..., np.ndarray]  # index arrays [draws, n], one per sample -> [..., draws]


def bootstrap(
    figure: Figure, sizes: int | Sequence[int], seed: int, *, resamples: int = RESAMPLES, at_once: int | None = None
) -> Interval:
    """95% percentile bootstrap interval of a figure (Efron 1979).

    The figure is computed from indices, so that whatever belongs together (two evaluations of the same prompts, the
    two texts of a pair) is resampled together: index both with the same array.

    Args:
        figure: takes one integer array [draws, n] per sample, whose rows are resamples of 0..n-1, and returns the
            figure of every row, float [draws].
        sizes: n, the size of the sample; or several sizes for samples that are resampled independently.
        seed: seed for the bootstrap draws.
        resamples: number of bootstrap draws.
        at_once: draws that `figure` gets in one call, which bounds its memory; by default all.

    Returns:
        The 2.5% and 97.5% quantiles of the finite values; (nan, nan) if no value is finite.

    Example:
        >>> x = np.array([0.0, 0.0, 1.0, 3.0])
        >>> bootstrap(lambda i: x[i].mean(1), len(x), seed=0)
        (0.0, 2.25)
        >>> y = np.array([5.0, 7.0])                                     # another sample, resampled independently
        >>> bootstrap(lambda i, j: y[j].mean(1) - x[i].mean(1), (len(x), len(y)), seed=0)
        (3.25, 6.75)
    """
    return central_interval(resampled(figure, sizes, seed, resamples=resamples, at_once=at_once))


def resampled(
    figure: Figure, sizes: int | Sequence[int], seed: int, *, resamples: int = RESAMPLES, at_once: int | None = None
) -> Float64[np.ndarray, "*figures resamples"]:
    """Values of one or several figures on bootstrap resamples; see `bootstrap`.

    The figure may return more axes before the last, to compute several figures from the same draws.

    Example:
        >>> x = np.array([0.0, 0.0, 1.0, 3.0])
        >>> resampled(lambda i: np.stack([x[i].mean(1), x[i].max(1)]), len(x), seed=0).shape
        (2, 2000)
    """
    several = (sizes,) if isinstance(sizes, int) else tuple(sizes)

    def statistic(*drawn: np.ndarray, axis: int) -> np.ndarray:
        return np.asarray(figure(*_with_single(drawn, several)), dtype=np.float64)

    # scipy refuses samples of one observation; these have only one resample.
    varying = [np.arange(n) for n in several if n > 1]
    if not varying:
        return np.repeat(statistic(axis=-1), resamples, axis=-1)
    with np.errstate(all="ignore"), warnings.catch_warnings():  # a figure may be nan in some draws
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        drawn = stats.bootstrap(
            varying,
            statistic,
            n_resamples=resamples,
            batch=at_once,
            vectorized=True,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    values: np.ndarray = drawn.bootstrap_distribution
    return values


def _with_single(drawn: Sequence[np.ndarray], sizes: Sequence[int]) -> list[np.ndarray]:
    """Add the index 0 for every sample of one observation."""
    rest = iter(drawn)
    rows = len(drawn[0]) if drawn else 1
    return [next(rest).astype(np.intp) if n > 1 else np.zeros((rows, 1), dtype=np.intp) for n in sizes]


def central_interval(values: Float64[np.ndarray, " n"]) -> Interval:
    """Interval that holds the central 95% of the finite values; (nan, nan) if there is none.

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
    """95% percentile bootstrap interval of the mean of rates from 0 to 1, one per prompt.

    If all values are equal, every resample has the same mean, and the bootstrap would claim certainty. Then the
    interval is the exact binomial bound of 0 events in n (the value plus and minus it, within 0 and 1).

    Example:
        >>> mean_interval(np.zeros(100))                                 # 1 - 0.025 ** (1 / 100)
        (0.0, 0.0362...)
    """
    if np.ptp(values) == 0:
        edge = float(stats.beta.ppf(1 - (1 - CONFIDENCE) / 2, 1, len(values)))
        value = float(values[0])
        return max(0.0, value - edge), min(1.0, value + edge)
    return bootstrap(lambda index: values[index].mean(1), len(values), seed)


def interval_of_differences(apart: Float64[np.ndarray, " n"], seed: int) -> Interval:
    """95% percentile bootstrap interval of the mean of paired differences, one per prompt."""
    return bootstrap(lambda index: apart[index].mean(1), len(apart), seed)


def sign_flip_p(apart: Float64[np.ndarray, " n"], seed: int) -> float:
    """Two-sided p-value of paired differences under random changes of their signs (Fisher 1935).

    The null hypothesis: a difference is as likely as the same difference with the other sign. All 2ⁿ changes of sign
    are tried if they are at most 9,999; otherwise 9,999 random ones. If all differences are 0, or there is only one, p
    is 1.
    """
    if len(apart) == 1 or not apart.any():
        return 1.0
    found = stats.permutation_test(
        (apart,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)
