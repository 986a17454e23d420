import math

import pytest
import torch

from tests.conftest import TEXTS
from toxloc import Meow2X, ToxlocError
from toxloc.evaluation.cost.perplexity import (
    check_count,
    completion_perplexity,
    mean_nll,
    nll_of_endings,
    nll_per_text,
    safe_exp,
    strided_perplexity,
)


def token_logps(lm, text):
    ids = torch.tensor([[0, *lm.tokenizer(text)["input_ids"]]])
    with torch.no_grad():
        logp = lm.hf(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
    return logp.gather(1, ids[0, 1:, None])[:, 0]


def test_likelihoods_one_text_at_a_time(tiny):
    expected = [token_logps(tiny, text) for text in TEXTS]
    nll, count = nll_per_text(tiny, TEXTS)
    assert nll == pytest.approx([-logps.sum().item() for logps in expected], rel=1e-5)
    assert count.tolist() == [len(logps) for logps in expected]
    assert mean_nll(tiny, TEXTS) == pytest.approx(-torch.cat(expected).mean().item(), rel=1e-5)


def test_a_number_too_large_for_a_float_is_infinite():
    assert safe_exp(1.0) == math.e
    assert safe_exp(1e4) == math.inf


def test_no_tokens():
    assert check_count(3) == 3
    with pytest.raises(ToxlocError, match=r"two tokens.* longer texts"):
        check_count(0)


def test_texts_of_one_token_are_refused(tiny):
    tiny.prepend_bos = False
    with pytest.raises(ToxlocError, match=r"two tokens.* longer texts"):
        mean_nll(tiny, ["a"])


def slow_strided(lm, texts, window, stride, bos):
    """Predict each token alone, from the tokens before it in the first window that contains it."""
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
    perplexity = strided_perplexity(tiny, TEXTS, window=window, stride=stride)
    assert perplexity == pytest.approx(slow_strided(tiny, TEXTS, window, stride, bos), rel=1e-5)


def test_more_context_makes_text_more_likely(lm):
    text = [" ".join(TEXTS)]
    assert strided_perplexity(lm, text, window=64, stride=16) < strided_perplexity(lm, text, window=8, stride=8)


@pytest.mark.parametrize("bad", [dict(window=1), dict(window=9999), dict(window=8, stride=9), dict(stride=0)])
def test_windows_out_of_range(tiny, bad):
    with pytest.raises(ToxlocError, match=r"(window|stride)=\d+"):
        strided_perplexity(tiny, TEXTS, **bad)


def test_endings_by_hand(lm):
    logps = token_logps(lm, "He said that the soup was cold.")
    known = 1 + len(lm.tokenizer("He said that")["input_ids"])
    nll, count = nll_of_endings(lm, ["He said that", "He"], [" the soup was cold.", " said that the soup was cold."])
    assert nll[0] == pytest.approx(-logps[known - 1 :].sum().item(), rel=1e-5)
    assert nll[1] > nll[0]
    assert count.tolist() == [len(logps) - known + 1, len(logps) - 1]


def test_completion_perplexity_is_that_of_the_unedited_model(tiny):
    prompts, completions = ["a b", "c", "d"], [["", " c d"], [" e f g"], [" "]]
    nll, count = nll_of_endings(tiny, ["a b", "c"], [" c d", " e f g"])
    with Meow2X(layers=[0], scale=0.0).applied(tiny):
        perplexity = completion_perplexity(tiny, prompts, completions)
        assert len(tiny.interventions) == 1
    assert perplexity == pytest.approx(math.exp(nll.sum() / count.sum()), rel=1e-6)
    assert math.isnan(completion_perplexity(tiny, ["a"], [[""]]))


def test_a_completion_that_fills_the_context_is_left_out_and_ends_nothing(tiny):
    prompts, completions = ["a b", "a " * tiny.context], [[" c d"], [" e"]]
    assert completion_perplexity(tiny, prompts, completions) == completion_perplexity(
        tiny, prompts[:1], completions[:1]
    )
    assert math.isnan(completion_perplexity(tiny, prompts[1:], completions[1:]))
    with pytest.raises(ToxlocError, match=f"{tiny.context} tokens"):
        nll_of_endings(tiny, prompts, [" c d", " e"])
