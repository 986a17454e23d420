"""The tokens of a chat template do not count: in batches, likelihoods, statistics, means and first differences."""

import numpy as np
import pytest
import torch

from tests.texts.test_chat import chat_lm  # noqa: F401
from toxloc import ContrastSet, ToxlocError, driving_texts, localize, patch
from toxloc.evaluation.cost.perplexity import mean_nll, nll_per_text
from toxloc.localization.activation import Activation, read_means
from toxloc.localization.first_difference import first_differences
from toxloc.localization.text_statistics import collect
from toxloc.models.activations import keys_of, pooled
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
    assert s.contributions.tokens.sum() == s.contributions.predicted.sum() == len(keys)


def test_attribution_is_that_of_the_answer(chat_lm):  # noqa: F811
    texts, seen, summed = answers(chat_lm), [], 0.0
    s = collect(chat_lm, texts, sites=[3])
    mlp = chat_lm.hf.transformer.h[3].mlp

    def keep(_module, _inputs, output):
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    handle = mlp.register_forward_hook(keep)
    for row in encode_rows(chat_lm, texts, 128):
        own = torch.tensor(row.own) == 1
        ids = torch.tensor([row.ids])
        log_p = chat_lm.hf(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        (-log_p[own[1:]].sum()).backward()
        m = seen.pop()
        summed -= ((m.detach() - mlp.c_proj.bias) * m.grad).sum(-1)[0, own].sum().item()
    handle.remove()
    assert s.contributions.attribution[3].sum().item() == pytest.approx(summed, rel=1e-3)


def test_pooled_activations_are_those_of_the_answer(chat_lm):  # noqa: F811
    place, seen = keys_of(chat_lm, 3), []
    batch = next(batches(chat_lm, answers(chat_lm)))
    with torch.no_grad(), chat_lm.hooks([(place.hook, seen.append)]):
        chat_lm.forward_hidden(batch.ids, batch.mask)
    keys = seen[0].reshape(*batch.ids.shape, -1)
    for pool in ("mean", "max"):
        (by_text,) = pooled(chat_lm, answers(chat_lm), [place], pool)
        for i, counted, own in zip(batch.index, batch.counted, keys, strict=True):
            expected = own[counted].mean(0) if pool == "mean" else own[counted].amax(0)
            torch.testing.assert_close(by_text[i], expected, rtol=1e-4, atol=1e-5)


def test_a_single_token_that_counts_is_pooled_alone(chat_lm):  # noqa: F811
    """The first position of a plain text is left out unless it is the only one; that of a template always is."""
    text = Chat().answered(chat_lm.tokenizer, "You")
    assert sum(encode_rows(chat_lm, [text], 128)[0].own) == 1
    (one,) = pooled(chat_lm, [text], [keys_of(chat_lm, 3)])
    (highest,) = pooled(chat_lm, [text], [keys_of(chat_lm, 3)], "max")
    torch.testing.assert_close(one, highest)


def test_means_are_those_of_the_answer(chat_lm):  # noqa: F811
    activation = Activation.keys(chat_lm, 3)
    read_means(chat_lm, [activation], encode_rows(chat_lm, answers(chat_lm), 128), skip_first=True)
    expected = collect(chat_lm, answers(chat_lm), sites=[3], gradients=False).keys[3].mean
    np.testing.assert_allclose(activation.constant, expected, rtol=1e-4, atol=1e-6)


def test_the_neuron_is_driven_within_the_answer(chat_lm):  # noqa: F811
    texts = answers(chat_lm)
    rows = encode_rows(chat_lm, texts, 128)
    for neuron in range(20):
        for driven in driving_texts(chat_lm, texts, 3, neuron, k=2):
            assert rows[driven.index].own[driven.position] == 1


def test_an_answer_that_does_not_fit_is_refused(chat_lm):  # noqa: F811
    long = Chat(system="Be kind. " * chat_lm.context)
    with pytest.raises(ToxlocError, match="An answer begins after the 256 tokens"):
        encode_rows(chat_lm, long.answers(chat_lm.tokenizer, TEXTS), 128)


def test_only_answers_need_a_fast_tokenizer(chat_lm, monkeypatch):  # noqa: F811
    monkeypatch.setattr(type(chat_lm.tokenizer), "is_fast", False)
    row = encode_rows(chat_lm, [Chat().asked(chat_lm.tokenizer, ["Hi"])], 128)[0]
    assert row.own == [0] * len(row.ids) and row.end == len(row.ids)
    with pytest.raises(ToxlocError, match="does not tell which characters"):
        encode_rows(chat_lm, answers(chat_lm), 128)


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
