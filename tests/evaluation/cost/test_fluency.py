import math

import pytest
import torch

from tests.conftest import TEXTS, random_model
from toxloc import Meow2X, ToxlocError
from toxloc.evaluation.cost.fluency import Unedited, measure_fluency
from toxloc.evaluation.cost.perplexity import mean_nll


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
        fluency = measure_fluency(lm, TEXTS)
    old, new = (-torch.cat([logp for _, logp in texts]).mean().item() for texts in (before, after))
    kl = torch.cat([(p.exp() * (p - q)).sum(1) for (p, _), (q, _) in zip(before, after, strict=True)]).mean().item()
    assert fluency.perplexity == pytest.approx(math.exp(new), rel=1e-4)
    assert fluency.perplexity_ratio == pytest.approx(math.exp(new - old), rel=1e-4)
    assert fluency.kl == pytest.approx(kl, rel=1e-3, abs=1e-7)
    same = [(p.argmax(1) == q.argmax(1)).double() for (p, _), (q, _) in zip(before, after, strict=True)]
    assert fluency.top_1 == pytest.approx(torch.cat(same).mean().item())
    assert fluency.n_tokens == sum(len(logp) for _, logp in before)


def test_an_unedited_model_costs_nothing(tiny):
    fluency = measure_fluency(tiny, TEXTS)
    assert (fluency.perplexity_ratio, fluency.kl, fluency.top_1) == (1.0, 0.0, 1.0)
    assert fluency.perplexity == pytest.approx(math.exp(mean_nll(tiny, TEXTS)), rel=1e-6)


def test_the_intervention_is_applied_again_afterwards(tiny):
    meow = Meow2X(layers=[0], mode="weights")
    with meow.applied(tiny):
        weight = tiny.W_out(0).clone()
        measure_fluency(tiny, TEXTS)
        assert torch.equal(weight, tiny.W_out(0))
        assert tiny.interventions == [meow]


def test_texts_of_one_token_are_refused(tiny):
    tiny.prepend_bos = False
    with pytest.raises(ToxlocError, match=r"two tokens.* longer texts"):
        measure_fluency(tiny, ["a"])
    with pytest.raises(ToxlocError, match=r"two tokens.* longer texts"):
        Unedited(tiny, ["a"])


def test_a_snapshot_gives_the_same_figures_as_measure_fluency(tiny):
    unedited, cheap = Unedited(tiny, TEXTS), Unedited(tiny, TEXTS, kl=False)
    with Meow2X(layers=[0], scale=0.5).applied(tiny):
        compared, expected, without_kl = unedited.compare(), measure_fluency(tiny, TEXTS), cheap.compare()
        left_out = unedited.compare(kl=False)
    assert compared.n_tokens == expected.n_tokens
    for name in ("perplexity", "perplexity_ratio", "kl", "top_1"):
        assert getattr(compared, name) == pytest.approx(getattr(expected, name), rel=1e-5)
    assert without_kl.perplexity == pytest.approx(compared.perplexity, rel=1e-6)
    for fluency in (without_kl, left_out):
        assert math.isnan(fluency.kl) and math.isnan(fluency.top_1)
    assert left_out.perplexity_ratio == without_kl.perplexity_ratio


def test_a_snapshot_of_an_edited_model_keeps_the_edited_state(tiny):
    with Meow2X(layers=[0], scale=0.5).applied(tiny):
        snapshot = Unedited(tiny, TEXTS)
        same = snapshot.compare()
    assert (same.perplexity_ratio, same.top_1) == (pytest.approx(1), 1)
    assert same.kl == pytest.approx(0, abs=1e-9)
    assert snapshot.compare().kl > 0


def test_the_first_256_tokens_of_a_text_count_by_default():
    """The first token is not predicted."""
    assert Unedited(random_model("llama", max_position_embeddings=512), ["word " * 400]).compare().n_tokens == 255
