from collections import Counter

import pytest
import torch
from scipy import stats
from transformers import TopPLogitsWarper

from toxloc import Meow2X, ToxlocError
from toxloc.generation import FEW, Nucleus, SeededRows, generate

from .conftest import random_model

PROMPTS = ["You are", "The weather in the north of the country was", "He", "I told her that the"]


@pytest.mark.parametrize("settings", [dict(temperature=0), dict(), dict(top_p=1.0, temperature=0.7)])
def test_batched_equals_single(lm, settings):
    together = generate(lm, PROMPTS, samples=2, seed=3, **settings)
    alone = [generate(lm, [prompt], samples=2, seed=3, batch_size=1, **settings)[0] for prompt in PROMPTS]
    assert together == alone


def test_left_padding_changes_no_logit(any_family):
    lm = any_family
    short = torch.tensor([[0, 7, 9]])
    padded = torch.tensor([[0, 0, 0, 0, 7, 9], [0, 3, 4, 5, 6, 7]])
    mask = torch.tensor([[0, 0, 0, 1, 1, 1], [1] * 6])
    with torch.no_grad():
        a = lm.hf.generate(short, attention_mask=torch.ones_like(short), max_new_tokens=4, do_sample=False)[0, 3:]
        b = lm.hf.generate(padded, attention_mask=mask, max_new_tokens=4, do_sample=False)[0, 6:]
    assert a.tolist() == b.tolist()


@pytest.mark.parametrize("sharpness", [0.1, 3.0, 6.0])  # nuclei of more, and of less, than FEW tokens
def test_the_nucleus_is_that_of_transformers(sharpness):
    scores = sharpness * torch.randn(6, 5000, generator=torch.Generator().manual_seed(0))
    ids = torch.zeros(6, 1, dtype=torch.long)
    ours, theirs = Nucleus(0.9)(ids, scores), TopPLogitsWarper(0.9)(ids, scores)
    assert ((theirs > -torch.inf).sum(1) > FEW).all() == (sharpness == 0.1)
    assert ((ours == theirs) | (ours.isinf() & theirs.isinf())).float().mean() > 0.9999
    assert ((ours > -torch.inf).sum(1) - (theirs > -torch.inf).sum(1)).abs().max() <= 1  # a token at the very edge


def test_seeds(lm):
    one = generate(lm, PROMPTS, samples=3, seed=0)
    assert one == generate(lm, PROMPTS, samples=3, seed=0)
    assert one != generate(lm, PROMPTS, samples=3, seed=1)
    assert len({text for row in one for text in row}) == 12
    twice = generate(lm, ["He", "He"], seed=0)
    assert twice[0] != twice[1]
    assert twice[0] == generate(lm, ["He"], seed=0)[0]


def test_completions_hold_neither_prompt_nor_special_tokens(lm):
    prompt = "He said he said"
    greedy = generate(lm, [prompt], temperature=0, max_new_tokens=8)[0][0]
    ids = torch.tensor([[0, *lm.tokenizer(prompt)["input_ids"]]])
    expected = lm.hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    assert greedy == lm.tokenizer.decode(expected[0, ids.shape[1]:]).split("<|endoftext|>")[0]
    assert all("<|" not in text for row in generate(lm, PROMPTS, samples=20, max_new_tokens=30) for text in row)


def test_seeded_rows_draw_from_the_softmax():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(4000, 1)
    drawn = SeededRows(range(4000))(torch.zeros(4000, 1, dtype=torch.long), logits).argmax(1)
    counts = [Counter(drawn.tolist())[i] for i in range(4)]
    assert stats.chisquare(counts, [2000, 1200, 600, 200]).pvalue > 1e-3


def test_the_nucleus_is_kept(lm):
    """With a tiny nucleus only the most probable token is left, whatever the noise."""
    assert generate(lm, PROMPTS, top_p=1e-6, seed=5) == generate(lm, PROMPTS, temperature=0)


def test_hooks_act_on_generation():
    lm = random_model()
    plain = generate(lm, PROMPTS, temperature=0)
    with Meow2X(layers=[0, 1], scale=0.0).applied(lm):
        assert generate(lm, PROMPTS, temperature=0) != plain
    assert generate(lm, PROMPTS, temperature=0) == plain


def test_the_models_own_generation_settings_do_not_leak_in(lm):
    config = lm.hf.generation_config
    plain = generate(lm, PROMPTS, temperature=0)
    config.repetition_penalty, config.num_beams = 5.0, 3
    try:
        assert generate(lm, PROMPTS, temperature=0) == plain
    finally:
        config.repetition_penalty, config.num_beams = None, None


@pytest.mark.parametrize("bad", [dict(samples=0), dict(max_new_tokens=0), dict(max_new_tokens=256), dict(top_p=0.0),
                                 dict(temperature=-1.0)])
def test_numbers_out_of_range_are_named(lm, bad):
    name, value = next(iter(bad.items()))
    with pytest.raises(ToxlocError, match=f"{name}={value}"):
        generate(lm, PROMPTS, **bad)
