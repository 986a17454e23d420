import math

import pytest

from toxloc.evaluation.cost.fluency import measure_fluency
from toxloc.evaluation.cost.perplexity import mean_nll, nll_per_text, strided_perplexity
from toxloc.evaluation.cost.protocol_fluency import protocol_fluency

TEXTS = ["A quiet evening at home with soup.", "The train left at nine."]


def test_every_kind_by_hand(lm):
    cost = measure_fluency(lm, TEXTS)
    nll, count = nll_per_text(lm, TEXTS)
    expected = {
        "text": math.exp(mean_nll(lm, TEXTS)),
        "strided": strided_perplexity(lm, TEXTS),
        "sentences": (math.exp(nll[0] / count[0]) + math.exp(nll[1] / count[1])) / 2,
        "completions": 21.5,
    }
    assert len({round(value, 6) for value in expected.values()}) == 4
    for kind, value in expected.items():
        assert protocol_fluency(lm, kind, TEXTS, 21.5, cost) == {f"perplexity, {kind}": pytest.approx(value)}
    assert protocol_fluency(lm, None, TEXTS, 21.5, cost) is None
