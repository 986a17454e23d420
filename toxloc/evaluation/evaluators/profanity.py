"""profanity-check: a linear classifier on words, which is fast and judges by vocabulary alone."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from .base import Evaluator


class ProfanityCheck(Evaluator):
    """The package alt-profanity-check: a linear SVM on word counts, trained on 200,000 labelled comments and posts.

    Source: https://pypi.org/project/alt-profanity-check/
    """

    name = "profanity-check"
    languages = ("en",)

    def __init__(self) -> None:
        self.card = {
            "trained_on": "tweets (Davidson et al. 2017) and Wikipedia comments",
            "blind_to": "toxicity without profane words; masked spellings",
            "calibration": {
                "threshold": 0.5,
                "everyday_rate": 0.0047,
                "texts": "860, builtin",
                "command": "toxloc calibrate profanity-check",
            },
        }

    def _score(self, texts: Sequence[str]) -> dict[str, Float64[np.ndarray, " n"]]:
        """Return the probability of profanity for each text."""
        from profanity_check import predict_prob

        return {"toxicity": predict_prob(texts)}
