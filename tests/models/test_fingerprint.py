import hashlib
import json

import pytest
import torch

from tests.conftest import random_model
from toxloc import Meow2X
from toxloc.models.fingerprint import fingerprint_of


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_weight_counts(family):
    lm = random_model(family)
    assert fingerprint_of(lm.hf, lm.model_type) == lm.fingerprint == random_model(family).fingerprint
    for name, weight in lm.hf.named_parameters():
        old = weight.flatten()[-1].item()
        with torch.no_grad():
            weight.view(-1)[-1] += 1e-3
            assert lm.current_fingerprint() != lm.fingerprint, name
            weight.view(-1)[-1] = old
    assert lm.current_fingerprint() == lm.fingerprint
    assert fingerprint_of(lm.hf, "another") != lm.fingerprint


def test_the_fingerprint_of_an_edited_model_is_still_that_of_the_model():
    lm = random_model()
    with Meow2X(layers=[0], scale=0.5, mode="weights").applied(lm):
        assert lm.current_fingerprint() != lm.fingerprint
        assert lm.has_fingerprint(lm.fingerprint)
        assert lm.has_fingerprint(of_version_0_1(random_model()))
    assert lm.has_fingerprint(of_version_0_1(lm))
    assert not lm.has_fingerprint(of_version_0_1(random_model(seed=1)))
    assert not lm.has_fingerprint(random_model(seed=1).fingerprint)


def of_version_0_1(lm):
    """The fingerprint as toxloc 0.1 computed it: every fourth of the 64 rows of each W_out."""
    digest = hashlib.sha256(json.dumps(["gpt2", 2, 64, 16]).encode())
    for block in lm.hf.transformer.h:
        digest.update(block.mlp.c_proj.weight.detach()[::4].contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
