"""AUROC: how well single values separate toxic from neutral texts."""

import numpy as np
from jaxtyping import Float, Float64
from scipy.stats import rankdata


def auroc_of(toxic: Float[np.ndarray, "n d"], neutral: Float[np.ndarray, "m d"]) -> Float64[np.ndarray, " d"]:
    """Area under the ROC curve of each column: the share of (toxic, neutral) pairs in which the toxic value is larger.

    Exact; ties count half. Infinite values are allowed, NaN are not.

    Example:
        >>> auroc_of(np.array([[3.0], [1.0]]), np.array([[0.0], [1.0]]))
        array([0.875])
    """
    return auroc_of_ranks(rankdata(np.concatenate([toxic, neutral]), axis=0), len(toxic))


def auroc_of_ranks(ranks: Float64[np.ndarray, "texts d"], n: int) -> Float64[np.ndarray, " d"]:
    """Area under the ROC curve of each column, from ranks.

    The ranks of the toxic texts add up to n (n + 1) / 2, from the toxic texts among themselves, plus 1 for each
    (toxic, neutral) pair in which the toxic value is larger.

    Args:
        ranks: ranks of all values of a column, where tied values share their mean rank; the first `n` rows are toxic.
        n: number of toxic texts.
    """
    won: np.ndarray = ranks[:n].sum(0) - n * (n + 1) / 2
    return won / (n * (len(ranks) - n))
