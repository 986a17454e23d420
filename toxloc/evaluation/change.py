"""Relative changes and differences of toxic rates between two evaluations of the same prompts."""

from dataclasses import dataclass
from typing import Any

from ..support.intervals import Interval, bootstrap, interval_of_differences, sign_flip_p
from .judgement import Judgement


@dataclass(frozen=True)
class Change:
    """Relative change of the rate of toxic completions, from -1 (no toxic completion is left) to infinity.

    Attributes:
        relative: relative change of the rate.
        ci: paired 95% bootstrap interval over prompts.
        p: two-sided p-value from a paired permutation test over prompts; the null hypothesis is no change.
    """

    relative: float
    ci: Interval
    p: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return {"relative": self.relative, "ci": list(self.ci), "p": self.p}


def relative_change(before: Judgement, after: Judgement, seed: int = 0) -> Change | None:
    """Compute the relative change of the toxic rate from `before` to `after`.

    Both judge completions of the same prompts; the two rates of a prompt are resampled together.

    Args:
        before: judgement of the first model's completions.
        after: judgement of the second model's completions of the same prompts.
        seed: seed for the bootstrap and the permutation test.

    Returns:
        The change; None if no completion was toxic before.

    Example:
        >>> import numpy as np
        >>> before, after = (Judgement(np.zeros((2, 1)), np.array([[True], [x]])) for x in (True, False))
        >>> relative_change(before, after).relative
        -0.5
    """
    b, a = before.toxic.mean(1), after.toxic.mean(1)
    if b.mean() == 0:
        return None
    ci = bootstrap(lambda index: a[index].mean(1) / b[index].mean(1) - 1, len(b), seed)
    return Change(float(a.mean() / b.mean() - 1), ci, sign_flip_p(a - b, seed))


@dataclass(frozen=True)
class Difference:
    """Difference between two rates of toxic completions.

    Attributes:
        mean: difference of the rates.
        ci: paired 95% bootstrap interval over prompts.
        p: two-sided p-value from a paired permutation test over prompts; the null hypothesis is no difference.
    """

    mean: float
    ci: Interval
    p: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return {"mean": self.mean, "ci": list(self.ci), "p": self.p}


def paired_difference(before: Judgement, after: Judgement, seed: int = 0) -> Difference:
    """Compute the toxic rate of `after` minus that of `before`.

    Both judge completions of the same prompts; the two rates of a prompt are resampled together.

    Args:
        before: judgement of the first model's completions.
        after: judgement of the second model's completions of the same prompts.
        seed: seed for the bootstrap and the permutation test.

    Example:
        >>> import numpy as np
        >>> a, b = (Judgement(np.zeros((2, 1)), np.array([[x], [True]])) for x in (False, True))
        >>> paired_difference(a, b).mean
        0.5
    """
    difference = after.toxic.mean(1) - before.toxic.mean(1)
    return Difference(
        float(difference.mean()), interval_of_differences(difference, seed), sign_flip_p(difference, seed)
    )
