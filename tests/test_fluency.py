import math

import pytest
import torch

from toxloc import Meow2X, ToxlocError
from toxloc.fluency import mean_nll, measure_fluency

from .conftest import TEXTS


def token_logps(lm, text):
    ids = torch.tensor([[0, *lm.tokenizer(text)["input_ids"]]])
    with torch.no_grad():
        logp = lm.hf(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
    return logp, logp.gather(1, ids[0, 1:, None])[:, 0]


def test_perplexity_and_kl_by_hand_one_text_at_a_time(any_family):
    lm = any_family
    before = [token_logps(lm, text) for text in TEXTS]
    with Meow2X(neurons=[(0, 1), (1, 2), (1, 3)], scale=0.0).applied(lm):
        after = [token_logps(lm, text) for text in TEXTS]
        found = measure_fluency(lm, TEXTS)
    old, new = (-torch.cat([logp for _, logp in both]).mean().item() for both in (before, after))
    kl = torch.cat([(p.exp() * (p - q)).sum(1) for (p, _), (q, _) in zip(before, after, strict=True)]).mean().item()
    assert found.perplexity == pytest.approx(math.exp(new), rel=1e-4)
    assert found.perplexity_ratio == pytest.approx(math.exp(new - old), rel=1e-4)
    assert found.kl == pytest.approx(kl, rel=1e-3, abs=1e-7)
    assert found.n_tokens == sum(len(logp) for _, logp in before)


def test_an_unedited_model_costs_nothing(tiny):
    found = measure_fluency(tiny, TEXTS)
    assert (found.perplexity_ratio, found.kl) == (1.0, 0.0)
    assert found.perplexity == pytest.approx(math.exp(mean_nll(tiny, TEXTS)), rel=1e-6)


def test_the_intervention_is_in_force_again_afterwards(tiny):
    meow = Meow2X(layers=[0], mode="weights")
    with meow.applied(tiny):
        weight = tiny.W_out(0).clone()
        measure_fluency(tiny, TEXTS)
        assert torch.equal(weight, tiny.W_out(0))
        assert tiny.applied == [meow]


def test_nothing_to_predict(tiny):
    tiny.prepend_bos = False
    with pytest.raises(ToxlocError, match="two tokens"):
        mean_nll(tiny, ["a"])
