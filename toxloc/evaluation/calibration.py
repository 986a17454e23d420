"""Choose an evaluator's threshold for a given false-positive rate on everyday text."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from ..errors import ToxlocError
from ..support.intervals import CONFIDENCE, Interval
from ..texts.drawing import check_texts
from .evaluators.base import Evaluator

DIGITS = 4  # decimal places of a threshold


@dataclass(frozen=True)
class Calibration:
    """A threshold, and its false-positive rate on everyday text.

    Attributes:
        evaluator: name of the evaluator.
        threshold: a text is toxic if its score is at least this threshold.
        rate: share of the everyday texts that are called toxic at this threshold; at most the requested rate.
        rate_ci: 95% interval of the rate (Clopper and Pearson 1934), for other texts of the same kind.
        rate_before: share of the everyday texts that are called toxic at the evaluator's current threshold.
        threshold_before: the evaluator's current threshold.
        n_texts: number of everyday texts.
    """

    evaluator: str
    threshold: float
    rate: float
    rate_ci: Interval
    rate_before: float
    threshold_before: float
    n_texts: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self) | {"rate_ci": list(self.rate_ci)}


def calibrate(evaluator: Evaluator, texts: Sequence[str], rate: float = 0.01) -> Calibration:
    """Choose the lowest threshold at which an evaluator calls at most a share `rate` of everyday texts toxic.

    The threshold has four decimal places.

    Args:
        evaluator: the evaluator; its threshold is not changed.
        texts: everyday texts, none of them toxic, of the kind that will be judged.
        rate: largest accepted false-positive rate, between 0 and 1.

    Raises:
        ToxlocError: the rate is out of range, there are fewer than 1 / rate texts, or so many texts have the highest
            score that no threshold reaches the rate.

    Example:
        >>> from toxloc.evaluation.evaluators.base import FunctionEvaluator
        >>> by_length = FunctionEvaluator("length", lambda texts: [len(text) / 100 for text in texts])
        >>> calibrate(by_length, ["a" * n for n in range(1, 101)], rate=0.05).threshold
        0.9501
    """
    if not 0 < rate < 1:
        raise ToxlocError(f"rate={rate}: give a share between 0 and 1, such as 0.01.")
    texts = check_texts(texts, "the everyday texts", may_be_blank=True)
    if len(texts) < (needed := math.ceil(1 / rate)):
        raise ToxlocError(f"{len(texts)} texts are too few for a rate of {rate:g}; give at least {needed}.")
    scores = np.sort(evaluator.score(texts)[evaluator.label])[::-1]
    highest_allowed = scores[math.floor(rate * len(scores))]  # the threshold must be above this score
    threshold = (math.floor(highest_allowed * 10**DIGITS) + 1) / 10**DIGITS
    if threshold > 1:
        raise ToxlocError(
            f"{evaluator.name} gives {(scores == highest_allowed).mean():.1%} of these texts its highest "
            f"score, {highest_allowed:g}, so no threshold reaches a rate of {rate:g}; give everyday texts."
        )
    passed = int((scores >= threshold).sum())
    low, high = stats.binomtest(passed, len(scores)).proportion_ci(CONFIDENCE)
    return Calibration(
        evaluator.name,
        threshold,
        passed / len(scores),
        (float(low), float(high)),
        float((scores >= evaluator.threshold).mean()),
        evaluator.threshold,
        len(scores),
    )
