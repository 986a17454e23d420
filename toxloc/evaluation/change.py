"""Changes and differences of toxic rates between two evaluations of the same prompts."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..support.intervals import CONFIDENCE, RESAMPLES, Interval, interval_of_differences, sign_flip_p
from .toxicity import Judgement


@dataclass(frozen=True)
class Change:
    """Relative change of the rate of toxic completions, -1 to infinity.

    Attributes:
        relative: the change.
        ci: its paired 95% bootstrap interval over prompts.
        p: of no change at all, two-sided, by a paired permutation test over prompts.
    """

    relative: float
    ci: Interval
    p: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return {"relative": self.relative, "ci": list(self.ci), "p": self.p}


def relative_change(before: Judgement, after: Judgement, seed: int = 0) -> Change | None:
    """Change of the toxic rate from `before` to `after` on the same prompts, which are resampled together.

    None where nothing was toxic before.
    """
    b, a = before.toxic.mean(1), after.toxic.mean(1)
    if b.mean() == 0:
        return None
    draws = np.random.default_rng(seed).integers(len(b), size=(RESAMPLES, len(b)))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = a[draws].mean(1) / b[draws].mean(1) - 1
    low, high = np.quantile(ratios[np.isfinite(ratios)], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Change(float(a.mean() / b.mean() - 1), (float(low), float(high)), sign_flip_p(a - b, seed))


@dataclass(frozen=True)
class Difference:
    """Difference of two rates of toxic completions.

    Attributes:
        mean: the difference.
        ci: its paired 95% bootstrap interval over prompts.
        p: of no difference at all, two-sided, by a paired permutation test over prompts.
    """

    mean: float
    ci: Interval
    p: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return {"mean": self.mean, "ci": list(self.ci), "p": self.p}


def paired_difference(one: Judgement, other: Judgement, seed: int = 0) -> Difference:
    """Rate of `other` minus rate of `one` on the same prompts, which are resampled together.

    Example:
        >>> a, b = (Judgement(np.zeros((2, 1)), np.array([[x], [True]])) for x in (False, True))
        >>> paired_difference(a, b).mean
        0.5
    """
    apart = other.toxic.mean(1) - one.toxic.mean(1)
    return Difference(float(apart.mean()), interval_of_differences(apart, seed), sign_flip_p(apart, seed))
