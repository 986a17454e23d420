import pytest
import torch

from toxloc.generation.batch import Opening, decode
from toxloc.generation.generate import generate
from toxloc.generation.sampling import Sampler
from toxloc.models.batching import encode

PROMPTS = ["You are", "The weather in the north of the country was", "He", "I told her that the"]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 64])
def test_no_batch_is_larger_than_asked_for_and_nothing_is_missing(lm, batch_size):
    rows = []
    with lm.hf.register_forward_pre_hook(lambda _, args, named: rows.append(len(named["input_ids"])), with_kwargs=True):
        completions = generate(lm, PROMPTS, samples=7, seed=3, batch_size=batch_size, max_new_tokens=2)
    assert max(rows) <= batch_size
    assert completions == generate(lm, PROMPTS, samples=7, seed=3, max_new_tokens=2)


def test_rows_that_ended_leave_the_batch(lm):
    """If half of all tokens end the text, the batch shrinks, and completions equal those of a batch of one row."""
    config, rows = lm.hf.generation_config, []
    ends, config.eos_token_id = config.eos_token_id, list(range(lm.hf.config.vocab_size // 2))
    try:
        with lm.hf.register_forward_pre_hook(
            lambda _, args, named: rows.append(len(named["input_ids"])), with_kwargs=True
        ):
            completions = generate(lm, PROMPTS[:1], samples=64, max_new_tokens=8)[0]
        assert rows[0] == 64
        assert rows[-1] < 32
        assert sorted(rows, reverse=True) == rows
        assert completions == generate(lm, PROMPTS[:1], samples=64, max_new_tokens=8, batch_size=1)[0]
    finally:
        config.eos_token_id = ends


def test_left_padding_changes_no_logit(any_family):
    lm = any_family
    short = torch.tensor([[0, 7, 9]])
    padded = torch.tensor([[0, 0, 0, 0, 7, 9], [0, 3, 4, 5, 6, 7]])
    mask = torch.tensor([[0, 0, 0, 1, 1, 1], [1] * 6])
    with torch.no_grad():
        a = lm.hf.generate(short, attention_mask=torch.ones_like(short), max_new_tokens=4, do_sample=False)[0, 3:]
        b = lm.hf.generate(padded, attention_mask=mask, max_new_tokens=4, do_sample=False)[0, 6:]
    assert a.tolist() == b.tolist()


def test_greedy_equals_generate_of_transformers(any_family):
    """Greedy completions are equal in every family, although all samples of a prompt share its keys and values."""
    lm = any_family
    texts = ["a", "a b c d e f", "b c"]
    completions = generate(lm, texts, samples=2, temperature=0, max_new_tokens=6)
    for text, (first, second) in zip(texts, completions, strict=True):
        ids = torch.tensor(encode(lm, [text], 64))
        written = lm.hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        assert first == second == lm.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)


def test_continuations_have_their_names_and_depend_only_on_their_seeds(tiny):
    openings = [Opening([0, 5, 6], [("a", 1), ("b", 2)]), Opening([7], [("c", 1), ("d", 1)])]

    def decoded(openings, size):
        return dict(decode(tiny, openings, Sampler(top_p=0.9), 6, size))

    together = decoded(openings, 4)
    assert sorted(together) == ["a", "b", "c", "d"]
    assert together["c"] == together["d"]
    assert decoded(openings, 1) == together
    assert decoded([Opening([0, 5, 6], [("alone", 2)])], 4) == {"alone": together["b"]}
