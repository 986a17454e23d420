import json
import subprocess
import sys
import time

import pytest
import torch

from tests.conftest import random_model
from toxloc import Meow2X, ToxlocError, load_model
from toxloc.generation.generate import generate
from toxloc.models.batching import encode

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


@pytest.mark.parametrize("bad", [dict(repetition_penalty=0.0), dict(samples=0), dict(max_new_tokens=0),
                                 dict(max_new_tokens=256), dict(top_p=0.0), dict(temperature=-1.0)])
def test_numbers_out_of_range_are_named(lm, bad):
    name, value = next(iter(bad.items()))
    with pytest.raises(ToxlocError, match=f"{name}={value}"):
        generate(lm, PROMPTS, **bad)


def test_a_journal_keeps_what_was_sampled_and_goes_on(lm, tmp_path):
    """What a kill leaves: some completions, the last line half-written."""
    path = tmp_path / "journal.jsonl"
    expected = generate(lm, PROMPTS, samples=3, journal=path)
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 12
    path.write_bytes(b"".join(lines[:6]) + lines[6][:9])
    sampled = []
    with lm.hf.register_forward_pre_hook(lambda _, args, named: sampled.append(len(named["input_ids"])),
                                         with_kwargs=True):
        assert generate(lm, PROMPTS, samples=3, journal=path) == expected
    assert max(sampled) == 7
    assert sorted(path.read_bytes().splitlines()) == sorted(line.rstrip(b"\n") for line in lines)
    assert generate(lm, PROMPTS, samples=3, journal=path) == expected


def test_a_killed_process_loses_and_repeats_nothing(tmp_path):
    path = tmp_path / "journal.jsonl"
    program = ("import sys; from toxloc import load_model; from toxloc.generation import generate; "
               f"generate(load_model(), {PROMPTS!r}, samples=200, batch_size=32, journal=sys.argv[1])")
    process = subprocess.Popen([sys.executable, "-c", program, str(path)])
    try:
        while not path.exists() or path.read_bytes().count(b"\n") < 100:
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        process.kill()  # SIGKILL: nothing can be tidied up
        process.wait()
    kept = path.read_bytes().splitlines()
    assert 100 <= len(kept) <= 700
    found = generate(load_model(), PROMPTS, samples=200, journal=path)
    assert path.read_bytes().splitlines()[: len(kept) - 1] == kept[:-1]
    places = [tuple(json.loads(line)[:2]) for line in path.read_bytes().splitlines()[1:]]
    assert sorted(places) == [(i, k) for i in range(4) for k in range(200)]
    assert found == generate(load_model(), PROMPTS, samples=200)


@pytest.mark.parametrize("other", [dict(seed=1), dict(top_p=0.5), dict(repetition_penalty=1.2)])
def test_a_journal_of_other_settings_is_refused(lm, tmp_path, other):
    path = tmp_path / "journal.jsonl"
    generate(lm, PROMPTS, journal=path)
    before = path.read_bytes()
    with pytest.raises(ToxlocError, match=next(iter(other))):
        generate(lm, PROMPTS, journal=path, **other)
    with pytest.raises(ToxlocError, match="prompts"):
        generate(lm, PROMPTS[1:], journal=path)
    with pytest.raises(ToxlocError, match="interventions"), Meow2X(layers=[0], scale=0.5).applied(lm):
        generate(lm, PROMPTS, journal=path)
    assert path.read_bytes() == before


def test_a_penalty_on_repetition_is_that_of_transformers(lm):
    found = generate(lm, PROMPTS, temperature=0, repetition_penalty=1.3, max_new_tokens=30)
    for prompt, (one,) in zip(PROMPTS, found, strict=True):
        ids = torch.tensor(encode(lm, [prompt], 64))
        written = lm.hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=30, do_sample=False,
                                 repetition_penalty=1.3)
        assert one == lm.tokenizer.decode(written[0, ids.shape[1]:], skip_special_tokens=True)
    assert found != generate(lm, PROMPTS, temperature=0, max_new_tokens=30)
