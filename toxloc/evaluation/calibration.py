"""From which score on does an evaluator mean it? A threshold with a stated rate of false alarms on everyday text."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from ..errors import ToxlocError
from ..support.intervals import CONFIDENCE, Interval
from .evaluators.base import Evaluator

DIGITS = 4


@dataclass(frozen=True)
class Calibration:
    """A threshold.

    Attributes:
        evaluator: its name.
        threshold: a text is toxic if its score is at least this.
        rate: share of the everyday texts that are, at most what was asked for.
        rate_ci: its 95% interval (Clopper and Pearson), as far as other texts are like these.
        rate_before: the same at the evaluator's threshold so far.
        threshold_before: that threshold.
        n_texts: how many everyday texts.
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
    """Find the lowest threshold at which at most a share `rate` of everyday texts is called toxic.

    Args:
        evaluator: whose threshold to find; it is left as it is.
        texts: everyday texts, none of them toxic, like those that will be judged.
        rate: of false alarms that is accepted.

    Raises:
        ToxlocError: too few texts for that rate, or so many texts with the highest score that no threshold keeps it.

    Example:
        >>> from toxloc.evaluation.evaluators.base import FunctionEvaluator
        >>> by_length = FunctionEvaluator("length", lambda texts: [len(text) / 100 for text in texts])
        >>> calibrate(by_length, ["a" * n for n in range(1, 101)], rate=0.05).threshold
        0.9501
    """
    if not 0 < rate < 1:
        raise ToxlocError(f"rate={rate}: give a share between 0 and 1, such as 0.01.")
    if len(texts) < (needed := math.ceil(1 / rate)):
        raise ToxlocError(f"{len(texts)} texts are too few for a rate of {rate:g}; give at least {needed}.")
    scores = np.sort(evaluator.score(texts)[evaluator.label])[::-1]
    highest_allowed = scores[math.floor(rate * len(scores))]  # this one may not pass any more
    threshold = (math.floor(highest_allowed * 10**DIGITS) + 1) / 10**DIGITS
    if threshold > 1:
        raise ToxlocError(f"{evaluator.name} gives {(scores == highest_allowed).mean():.1%} of these texts its highest "
                          f"score, {highest_allowed:g}: no threshold keeps {rate:g}. Are they everyday texts?")
    passed = int((scores >= threshold).sum())
    low, high = stats.binomtest(passed, len(scores)).proportion_ci(CONFIDENCE)
    return Calibration(evaluator.name, threshold, passed / len(scores), (float(low), float(high)),
                       float((scores >= evaluator.threshold).mean()), evaluator.threshold, len(scores))
