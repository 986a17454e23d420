import json
import subprocess
import sys
import time

import pytest
import torch

from tests.conftest import random_model
from toxloc import Meow2X, ToxlocError, load_model
from toxloc.generation.decoding import Decoding
from toxloc.generation.generate import check_decoding, generate, sample
from toxloc.models.batching import encode

PROMPTS = ["You are", "The weather in the north of the country was", "He", "I told her that the"]


@pytest.mark.parametrize("settings", [dict(temperature=0), dict(), dict(top_p=1.0, temperature=0.7)])
def test_batched_equals_single(lm, settings):
    together = generate(lm, PROMPTS, samples=2, seed=3, **settings)
    alone = [generate(lm, [prompt], samples=2, seed=3, batch_size=1, **settings)[0] for prompt in PROMPTS]
    assert together == alone


def test_seeds(lm):
    completions = generate(lm, PROMPTS, samples=3, seed=0)
    assert completions == generate(lm, PROMPTS, samples=3, seed=0)
    assert completions != generate(lm, PROMPTS, samples=3, seed=1)
    assert len({text for row in completions for text in row}) == 12
    twice = generate(lm, ["He", "He"], seed=0)
    assert twice[0] != twice[1]
    assert twice[0] == generate(lm, ["He"], seed=0)[0]


def test_completions_do_not_include_the_prompt_or_special_tokens(lm):
    prompt = "He said he said"
    greedy = generate(lm, [prompt], temperature=0, max_new_tokens=8)[0][0]
    ids = torch.tensor([[0, *lm.tokenizer(prompt)["input_ids"]]])
    expected = lm.hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    assert greedy == lm.tokenizer.decode(expected[0, ids.shape[1] :]).split("<|endoftext|>")[0]
    assert all("<|" not in text for row in generate(lm, PROMPTS, samples=20, max_new_tokens=30) for text in row)


def test_a_tiny_nucleus_equals_greedy_decoding(lm):
    """A tiny nucleus holds only the most likely token."""
    assert generate(lm, PROMPTS, top_p=1e-6, seed=5) == generate(lm, PROMPTS, temperature=0)


def test_interventions_with_hooks_change_completions():
    lm = random_model()
    plain = generate(lm, PROMPTS, temperature=0)
    with Meow2X(layers=[0, 1], scale=0.0).applied(lm):
        assert generate(lm, PROMPTS, temperature=0) != plain
    assert generate(lm, PROMPTS, temperature=0) == plain


def test_the_generation_config_of_the_model_is_not_used(lm):
    config = lm.hf.generation_config
    plain = generate(lm, PROMPTS, temperature=0)
    config.repetition_penalty, config.num_beams = 5.0, 3
    try:
        assert generate(lm, PROMPTS, temperature=0) == plain
    finally:
        config.repetition_penalty, config.num_beams = None, None


def test_a_journal_keeps_the_completions_and_only_the_rest_is_sampled(lm, tmp_path):
    """A killed process leaves some completions and a last line that is half-written."""
    path = tmp_path / "journal.jsonl"
    expected = generate(lm, PROMPTS, samples=3, journal=path)
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 12
    path.write_bytes(b"".join(lines[:6]) + lines[6][:9])
    sampled = []
    with lm.hf.register_forward_pre_hook(
        lambda _, args, named: sampled.append(len(named["input_ids"])), with_kwargs=True
    ):
        assert generate(lm, PROMPTS, samples=3, journal=path) == expected
    assert max(sampled) == 7
    assert sorted(path.read_bytes().splitlines()) == sorted(line.rstrip(b"\n") for line in lines)
    assert generate(lm, PROMPTS, samples=3, journal=path) == expected


@pytest.mark.slow
def test_a_killed_process_loses_and_repeats_no_completion(tmp_path):
    path = tmp_path / "journal.jsonl"
    program = (
        "import sys; from toxloc import load_model; from toxloc.generation.generate import generate; "
        f"generate(load_model(), {PROMPTS!r}, samples=60, batch_size=16, journal=sys.argv[1])"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(path)])
    try:
        while not path.exists() or path.read_bytes().count(b"\n") < 40:
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        process.kill()  # SIGKILL: the process cannot clean up
        process.wait()
    kept = path.read_bytes().splitlines()
    assert 40 <= len(kept) <= 220
    completions = generate(load_model(), PROMPTS, samples=60, journal=path)
    assert path.read_bytes().splitlines()[: len(kept) - 1] == kept[:-1]
    indices = [tuple(json.loads(line)[:2]) for line in path.read_bytes().splitlines()[1:]]
    assert sorted(indices) == [(i, k) for i in range(4) for k in range(60)]
    assert completions == generate(load_model(), PROMPTS, samples=60)


@pytest.mark.parametrize("other", [dict(seed=1), dict(top_p=0.5), dict(repetition_penalty=1.2)])
def test_a_journal_with_other_settings_is_rejected(lm, tmp_path, other):
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


def test_the_repetition_penalty_equals_that_of_transformers(lm):
    completions = generate(lm, PROMPTS, temperature=0, repetition_penalty=1.3, max_new_tokens=30)
    for prompt, (completion,) in zip(PROMPTS, completions, strict=True):
        ids = torch.tensor(encode(lm, [prompt], 64))
        written = lm.hf.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=30, do_sample=False, repetition_penalty=1.3
        )
        assert completion == lm.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
    assert completions != generate(lm, PROMPTS, temperature=0, max_new_tokens=30)


def test_completions_are_yielded_with_their_indices(lm):
    decoding = Decoding(samples=2, max_new_tokens=5)
    whole = {(c.prompt, c.sample): c for c in sample(lm, PROMPTS, decoding, seed=3)}
    assert sorted(whole) == [(i, k) for i in range(4) for k in range(2)]
    assert [[whole[i, k].text for k in range(2)] for i in range(4)] == generate(
        lm, PROMPTS, samples=2, seed=3, max_new_tokens=5
    )
    known = {(0, 0), (2, 1)}
    rest = {(c.prompt, c.sample): c for c in sample(lm, PROMPTS, decoding, seed=3, known=known)}
    assert rest == {index: c for index, c in whole.items() if index not in known}


def test_the_number_of_tokens_includes_the_end_of_text_token(lm):
    for prompt, completion in zip(
        PROMPTS, sorted(sample(lm, PROMPTS, Decoding(1, 60, temperature=0)), key=lambda c: c.prompt), strict=True
    ):
        ids = torch.tensor(encode(lm, [prompt], 64))
        written = lm.hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=60, do_sample=False)
        assert completion.n_tokens == written.shape[1] - ids.shape[1]


def test_completions_must_leave_room_for_a_prompt(lm):
    assert lm.context == 256
    check_decoding(lm, Decoding(max_new_tokens=255))
    with pytest.raises(ToxlocError, match=r"max_new_tokens=256 .*toxloc-tiny.* below its context of 256"):
        check_decoding(lm, Decoding(max_new_tokens=256))
    with pytest.raises(ToxlocError, match=r"top_p=0\.0"):
        generate(lm, PROMPTS, top_p=0.0)
