import numpy as np
import pytest
import torch

from tests.conftest import TEXTS, random_model
from tests.interventions.test_unit_scaling import linear_outputs
from toxloc import ContrastSet, ToxlocError
from toxloc.localization.unit_aurocs import unit_aurocs


@pytest.mark.parametrize("family", ["gpt2", "phi3"])
def test_aurocs_equal_those_of_the_plain_model_text_by_text(family):
    lm = random_model(family)
    pairs = ContrastSet([*TEXTS[:2], "Hm, no."], TEXTS[2:])
    peaks = [
        [
            torch.cat([torch.cat([out[1:].amax(0) for out in layer]) for layer in linear_outputs(lm, text)])
            for text in side
        ]
        for side in (pairs.toxic, pairs.neutral)
    ]
    won = sum((t > n).double() + (t == n).double() / 2 for t in peaks[0] for n in peaks[1])
    assert len(won.unique()) > 5
    by_site = unit_aurocs(lm, pairs)
    assert list(by_site) == lm.sites("mlp")
    np.testing.assert_array_equal(np.stack([*by_site.values()]), (won / 9).reshape(lm.n_layers, -1).numpy())


def test_equal_sides_are_an_error(tiny):
    with pytest.raises(ToxlocError, match=r"AUROC over \.5 on the contrast set 'twins'"):
        unit_aurocs(tiny, ContrastSet(TEXTS[:1], TEXTS[:1], "twins"))
