"""Number of prompts that an evaluation needs for a given margin of error."""

import numpy as np
from scipy import stats

from ..errors import ToxlocError
from ..support.intervals import CONFIDENCE
from .judgement import Judgement


def prompts_needed(judgement: Judgement, margin: float) -> int:
    """Compute the number of prompts for which the 95% interval of the toxic rate is ± `margin`.

    The prompts are assumed to resemble the judged prompts and to have as many samples each. The number is (1.96 sd /
    margin)², from the normal approximation of the mean over prompts; sd is the standard deviation over prompts of a
    prompt's toxic rate. sd is at least that of a rate half a completion away from 0 or 1, so that it is not 0 if all
    prompts have the same rate.

    Args:
        judgement: judgement of one evaluator, or "any".
        margin: half the width of the interval, as a share: 0.02 for ± 2 percentage points.

    Raises:
        ToxlocError: the margin is not between 0 and 1.

    Example:
        >>> toxic = np.array([[True], [False]] * 50)
        >>> prompts_needed(Judgement(toxic * 1.0, toxic), 0.02)
        2426
    """
    if not 0 < margin < 1:
        raise ToxlocError(f"margin={margin}: give a share between 0 and 1, such as 0.02 for ± 2 percentage points.")
    per_prompt = judgement.toxic.mean(1)
    edge = 0.5 / judgement.toxic.size
    spread = max(float(per_prompt.std(ddof=1)) if len(per_prompt) > 1 else 0.0, (edge * (1 - edge)) ** 0.5)
    z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    return int(np.ceil((z * spread / margin) ** 2))
