import numpy as np
import pytest

from toxloc import ToxlocError
from toxloc.evaluation.judgement import Judgement
from toxloc.evaluation.sample_size import prompts_needed
from toxloc.evaluation.toxicity import toxicity


def judged(scores):
    return Judgement(scores, scores >= 0.5)


def test_the_computed_number_of_prompts_gives_the_margin():
    rng = np.random.default_rng(0)

    def drawn(n):
        rates = rng.beta(0.5, 1.5, size=(n, 1))  # prompts have different rates, so samples of a prompt are correlated
        return judged((rng.random((n, 5)) < rates).astype(float))

    needed = prompts_needed(drawn(2000), 0.03)
    low, high = toxicity(drawn(needed)).rate_ci
    assert (high - low) / 2 == pytest.approx(0.03, rel=0.1)


def test_by_hand():
    coin = np.array([[1.0], [0.0]] * 50)
    assert prompts_needed(judged(coin), 0.02) == np.ceil(0.25 * 100 / 99 * (1.959964 / 0.02) ** 2)
    share = 0.5 / 250  # half a completion of 250
    assert prompts_needed(judged(np.zeros((50, 5))), 0.02) == np.ceil(share * (1 - share) * (1.959964 / 0.02) ** 2)


@pytest.mark.parametrize("margin", [0, 1, -0.02, 2.0])
def test_margins_out_of_range(margin):
    with pytest.raises(ToxlocError, match=f"margin={margin}"):
        prompts_needed(judged(np.eye(3)), margin)
