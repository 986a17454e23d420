from collections import Counter

import pytest
import torch
from scipy import stats
from transformers import TopPLogitsWarper

from toxloc import Meow2X, ToxlocError
from toxloc.batching import encode
from toxloc.generation import FEW, Sampler, draw, generate

from .conftest import random_model

PROMPTS = ["You are", "The weather in the north of the country was", "He", "I told her that the"]


@pytest.mark.parametrize("settings", [dict(temperature=0), dict(), dict(top_p=1.0, temperature=0.7)])
def test_batched_equals_single(lm, settings):
    together = generate(lm, PROMPTS, samples=2, seed=3, **settings)
    alone = [generate(lm, [prompt], samples=2, seed=3, batch_size=1, **settings)[0] for prompt in PROMPTS]
    assert together == alone


@pytest.mark.parametrize("batch_size", [1, 3, 4, 64])
def test_no_batch_is_larger_than_asked_for_and_nothing_is_missing(lm, batch_size):
    rows = []
    with lm.hf.register_forward_pre_hook(lambda _, args, named: rows.append(len(named["input_ids"])), with_kwargs=True):
        found = generate(lm, PROMPTS, samples=7, seed=3, batch_size=batch_size, max_new_tokens=2)
    assert max(rows) <= batch_size
    assert found == generate(lm, PROMPTS, samples=7, seed=3, max_new_tokens=2)


def test_rows_that_ended_leave_the_batch(lm):
    """With most tokens ending the text few rows go on, and what they write is what they write alone."""
    config, rows = lm.hf.generation_config, []
    ends, config.eos_token_id = config.eos_token_id, list(range(lm.hf.config.vocab_size // 2))
    try:
        with lm.hf.register_forward_pre_hook(lambda _, args, named: rows.append(len(named["input_ids"])),
                                             with_kwargs=True):
            found = generate(lm, PROMPTS[:1], samples=64, max_new_tokens=8)[0]
        assert rows[0] == 64
        assert rows[-1] < 32
        assert sorted(rows, reverse=True) == rows
        assert found == generate(lm, PROMPTS[:1], samples=64, max_new_tokens=8, batch_size=1)[0]
    finally:
        config.eos_token_id = ends


@pytest.mark.parametrize("broken", [False, True])
def test_the_models_attention_is_left_as_it_was(lm, broken):
    before = lm.hf.config._attn_implementation
    if broken:
        with pytest.raises(ZeroDivisionError), lm.hf.register_forward_pre_hook(lambda *_: 1 / 0):
            generate(lm, PROMPTS)
    else:
        generate(lm, PROMPTS, max_new_tokens=1)
    assert lm.hf.config._attn_implementation == before


def test_greedy_equals_generate_of_transformers(any_family):
    """In every family, although the prompt's keys and values are computed once for all its samples."""
    lm = any_family
    texts = ["a", "a b c d e f", "b c"]
    found = generate(lm, texts, samples=2, temperature=0, max_new_tokens=6)
    for text, (one, other) in zip(texts, found, strict=True):
        ids = torch.tensor(encode(lm, [text], 64))
        written = lm.hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        assert one == other == lm.tokenizer.decode(written[0, ids.shape[1]:], skip_special_tokens=True)


def test_left_padding_changes_no_logit(any_family):
    lm = any_family
    short = torch.tensor([[0, 7, 9]])
    padded = torch.tensor([[0, 0, 0, 0, 7, 9], [0, 3, 4, 5, 6, 7]])
    mask = torch.tensor([[0, 0, 0, 1, 1, 1], [1] * 6])
    with torch.no_grad():
        a = lm.hf.generate(short, attention_mask=torch.ones_like(short), max_new_tokens=4, do_sample=False)[0, 3:]
        b = lm.hf.generate(padded, attention_mask=mask, max_new_tokens=4, do_sample=False)[0, 6:]
    assert a.tolist() == b.tolist()


@pytest.mark.parametrize("top_p", [0.9, 1.0])
@pytest.mark.parametrize("sharpness", [0.1, 3.0, 6.0])  # nuclei of more, and of less, than FEW tokens
def test_draws_are_those_of_the_nucleus_of_transformers(sharpness, top_p):
    generator = torch.Generator().manual_seed(0)
    scores, uniform = sharpness * torch.randn(50, 5000, generator=generator), torch.rand(50, 5000, generator=generator)
    nucleus = TopPLogitsWarper(top_p)(torch.zeros(50, 1, dtype=torch.long), scores)
    assert (nucleus > -torch.inf).sum(1).gt(FEW).all() == (sharpness == 0.1 or top_p == 1)
    expected = (nucleus - (-uniform.log()).log()).argmax(1)
    assert draw(scores, uniform, top_p).tolist() == expected.tolist()
    assert draw(scores, uniform, top_p, few=3).tolist() == expected.tolist()


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


def test_the_sampler_draws_from_the_softmax():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(4000, 1)
    drawn = Sampler(range(4000))(logits)
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
