"""The tokens of a chat template do not count: in batches, likelihoods, statistics, means and first differences."""

import numpy as np
import pytest
import torch

from tests.texts.test_chat import chat_lm  # noqa: F401
from toxloc import ContrastSet, localize, patch
from toxloc.evaluation.cost.perplexity import mean_nll, nll_per_text
from toxloc.localization.first_difference import first_differences
from toxloc.localization.text_statistics import collect
from toxloc.models.batching import batches, encode, encode_rows
from toxloc.texts.chat import Chat

TEXTS = ["You are a fool and a liar.", "The soup needs salt."]


def answers(lm, texts=TEXTS):
    return Chat().answers(lm.tokenizer, texts)


def test_the_tokens_of_the_answer_count(chat_lm):  # noqa: F811
    for text, row in zip(TEXTS, encode_rows(chat_lm, answers(chat_lm), 128), strict=True):
        counted = [token for token, own in zip(row.ids, row.own, strict=True) if own]
        assert chat_lm.tokenizer.decode(counted).strip() == text
        assert 0 < row.own.index(1) < row.end < len(row.own)


def test_the_template_is_no_part_of_the_length(chat_lm):  # noqa: F811
    row = encode_rows(chat_lm, answers(chat_lm), 3)[0]
    assert len(row.ids) == 3 + row.own.count(0) + (sum(row.own) - 3)
    prompt = Chat().asked(chat_lm.tokenizer, ["Who are you?"])
    assert len(encode(chat_lm, [prompt], 5)[0]) == 5


def test_likelihoods_are_those_of_the_answer(chat_lm):  # noqa: F811
    texts = answers(chat_lm)
    nll, n = nll_per_text(chat_lm, texts)
    for i, row in enumerate(encode_rows(chat_lm, texts, 128)):
        ids = torch.tensor([row.ids])
        with torch.no_grad():
            log_p = chat_lm.hf(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        by_hand = -log_p[torch.tensor(row.own[1:]) == 1]
        assert n[i] == len(by_hand) == sum(row.own)
        assert nll[i] == pytest.approx(by_hand.sum().item(), rel=1e-4)
    assert mean_nll(chat_lm, texts) == pytest.approx(nll.sum() / n.sum(), rel=1e-5)


def test_statistics_are_those_of_the_answer(chat_lm):  # noqa: F811
    texts, seen = answers(chat_lm), []
    s = collect(chat_lm, texts, sites=[3], gradients=False)
    batch = next(batches(chat_lm, texts))
    with torch.no_grad(), chat_lm.hooks([(chat_lm.at(3).keys_hook, seen.append)]):
        chat_lm.forward_hidden(batch.ids, batch.mask)
    keys = seen[0].reshape(*batch.ids.shape, -1)[batch.counted]
    np.testing.assert_allclose(s.keys[3].mean, keys.mean(0).numpy(), rtol=1e-4, atol=1e-6)


def test_first_differences_stop_at_the_answer(chat_lm):  # noqa: F811
    pairs = ContrastSet(["You are a fool.", "Get out, liar."], ["You are a friend.", "Get out, now."], paired=True)
    chats = first_differences(chat_lm, pairs.as_chat(chat_lm)).usable
    for difference, row in zip(chats, encode_rows(chat_lm, pairs.as_chat(chat_lm).toxic, 128), strict=True):
        assert difference.template == tuple(i for i in range(len(difference.prefix)) if not row.own[i])
        assert len(difference.template) == row.own.index(1)
        assert difference.prefix + difference.toxic == tuple(row.ids[: row.end])


def test_patching_leaves_the_template_alone(chat_lm):  # noqa: F811
    """Every key of a layer counts, so replacing nothing but template tokens would have an effect."""
    pairs = ContrastSet(["You idiot."] * 2, ["Please come."] * 2, paired=True).as_chat(chat_lm)
    result = patch(chat_lm, pairs, [3], by="zero", draws=0)
    assert result.n_pairs == 2 and result.effect[0] == 0
    assert localize(chat_lm, pairs, ("counterfactual",), draws=0).layer_scores("counterfactual") == pytest.approx(0)
