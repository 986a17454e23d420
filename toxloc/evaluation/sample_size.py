"""How many prompts an evaluation needs for a given margin of error."""

import numpy as np
from scipy import stats

from ..errors import ToxlocError
from ..support.intervals import CONFIDENCE
from .judgement import Judgement


def prompts_needed(judgement: Judgement, margin: float) -> int:
    """Compute how many prompts make the 95% interval of the toxic rate as narrow as ± `margin`.

    The prompts are assumed to be like those judged, with as many samples of each. Normal approximation of the mean
    over prompts: (1.96 sd / margin)², where sd is the standard deviation over prompts of a prompt's toxic rate. If all
    prompts have the same rate, sd is that of a rate half a completion away from 0 or 1.

    Args:
        judgement: verdicts of one evaluator, or "any".
        margin: half the width of the interval, as a share: 0.02 for ± 2 percentage points.

    Raises:
        ToxlocError: the margin is not between 0 and 1.

    Example:
        >>> toxic = np.array([[True], [False]] * 50)
        >>> prompts_needed(Judgement(toxic * 1.0, toxic), 0.02)
        2426
    """
    if not 0 < margin < 1:
        raise ToxlocError(f"margin={margin}: give a share between 0 and 1, such as 0.02 for ± 2 points.")
    per_prompt = judgement.toxic.mean(1)
    edge = 0.5 / judgement.toxic.size
    spread = max(float(per_prompt.std(ddof=1)) if len(per_prompt) > 1 else 0.0, (edge * (1 - edge)) ** 0.5)
    z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    return int(np.ceil((z * spread / margin) ** 2))
