import math

import pytest
import torch

from tests.conftest import TEXTS
from toxloc import Meow2X, ToxlocError
from toxloc.evaluation.cost.fluency import Unedited, measure_fluency
from toxloc.evaluation.cost.perplexity import completion_perplexity, mean_nll, nll_of_endings, strided_perplexity


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
    same = [(p.argmax(1) == q.argmax(1)).double() for (p, _), (q, _) in zip(before, after, strict=True)]
    assert found.top_1 == pytest.approx(torch.cat(same).mean().item())
    assert found.n_tokens == sum(len(logp) for _, logp in before)


def test_an_unedited_model_costs_nothing(tiny):
    found = measure_fluency(tiny, TEXTS)
    assert (found.perplexity_ratio, found.kl, found.top_1) == (1.0, 0.0, 1.0)
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


def test_what_is_kept_of_the_unedited_model_gives_the_same(tiny):
    unedited, cheap = Unedited(tiny, TEXTS), Unedited(tiny, TEXTS, kl=False)
    with Meow2X(layers=[0], scale=0.5).applied(tiny):
        found, expected, less = unedited.compare(), measure_fluency(tiny, TEXTS), cheap.compare()
    assert found.n_tokens == expected.n_tokens
    for name in ("perplexity", "perplexity_ratio", "kl", "top_1"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-5)
    assert less.perplexity == pytest.approx(found.perplexity, rel=1e-6)
    assert math.isnan(less.kl) and math.isnan(less.top_1)


def slow_strided(lm, texts, window, stride, bos):
    """Token by token: each is predicted alone, from what the first window that holds it holds before it."""
    row = lm.tokenizer("\n\n".join(texts))["input_ids"]
    total = count = 0
    for at in range(len(row)):
        start = 0
        while start + window <= at:
            start += stride
        before = [0] * bos + row[start:at]
        if before:
            with torch.no_grad():
                logp = lm.hf(torch.tensor([before])).logits[0, -1].double().log_softmax(-1)
            total, count = total - logp[row[at]].item(), count + 1
    return math.exp(total / count)


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize(("window", "stride"), [(8, 4), (8, 8), (9, 2), (7, 1), (60, 20)])
def test_strided_perplexity_equals_a_slow_reference(tiny, window, stride, bos):
    tiny.prepend_bos = bos
    found = strided_perplexity(tiny, TEXTS, window=window, stride=stride)
    assert found == pytest.approx(slow_strided(tiny, TEXTS, window, stride, bos), rel=1e-5)


def test_more_context_makes_text_more_likely(lm):
    text = [" ".join(TEXTS)]
    assert strided_perplexity(lm, text, window=64, stride=16) < strided_perplexity(lm, text, window=8, stride=8)


@pytest.mark.parametrize("bad", [dict(window=1), dict(window=9999), dict(window=8, stride=9), dict(stride=0)])
def test_windows_that_cannot_be(tiny, bad):
    with pytest.raises(ToxlocError, match=r"(window|stride)=\d+"):
        strided_perplexity(tiny, TEXTS, **bad)


def test_endings_by_hand(lm):
    _, own = token_logps(lm, "He said that the soup was cold.")
    known = 1 + len(lm.tokenizer("He said that")["input_ids"])
    nll, count = nll_of_endings(lm, ["He said that", "He"], [" the soup was cold.", " said that the soup was cold."])
    assert nll[0] == pytest.approx(-own[known - 1 :].sum().item(), rel=1e-5)
    assert nll[1] > nll[0]
    assert count.tolist() == [len(own) - known + 1, len(own) - 1]


def test_completions_are_judged_by_the_model_without_its_edits(tiny):
    prompts, completions = ["a b", "c", "d"], [["", " c d"], [" e f g"], [" "]]
    nll, count = nll_of_endings(tiny, ["a b", "c"], [" c d", " e f g"])
    with Meow2X(layers=[0], scale=0.0).applied(tiny):
        found = completion_perplexity(tiny, prompts, completions)
        assert len(tiny.applied) == 1
    assert found == pytest.approx(math.exp(nll.sum() / count.sum()), rel=1e-6)
    assert math.isnan(completion_perplexity(tiny, ["a"], [[""]]))
