from collections import Counter

import pytest
import torch
from scipy import stats
from transformers import TopPLogitsWarper

from toxloc.generation import sampling
from toxloc.generation.sampling import CANDIDATES, Sampler, draw


@pytest.mark.parametrize("top_p", [0.9, 1.0])
@pytest.mark.parametrize("sharpness", [0.1, 3.0, 6.0])  # nuclei with more and with fewer than CANDIDATES tokens
def test_draws_equal_those_from_the_nucleus_of_transformers(sharpness, top_p):
    generator = torch.Generator().manual_seed(0)
    scores, uniform = sharpness * torch.randn(50, 5000, generator=generator), torch.rand(50, 5000, generator=generator)
    nucleus = TopPLogitsWarper(top_p)(torch.zeros(50, 1, dtype=torch.long), scores)
    assert (nucleus > -torch.inf).sum(1).gt(CANDIDATES).all() == (sharpness == 0.1 or top_p == 1)
    expected = (nucleus - (-uniform.log()).log()).argmax(1)
    assert draw(scores, uniform, top_p).tolist() == expected.tolist()
    assert draw(scores, uniform, top_p, candidates=3).tolist() == expected.tolist()


def test_the_sampler_draws_from_the_softmax():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(4000, 1)
    noise = [torch.Generator().manual_seed(seed) for seed in range(4000)]
    ids = torch.zeros(4000, 1, dtype=torch.long)
    drawn = Sampler()(logits, noise, ids, ids)
    counts = [Counter(drawn.tolist())[i] for i in range(4)]
    assert stats.chisquare(counts, [2000, 1200, 600, 200]).pvalue > 1e-3


def test_drawing_a_few_rows_at_a_time_gives_the_same_tokens(monkeypatch):
    scores = torch.randn(7, 50, generator=torch.Generator().manual_seed(0))
    ids = torch.zeros(7, 1, dtype=torch.long)

    def drawn():
        return Sampler(top_p=0.9)(scores, [torch.Generator().manual_seed(i) for i in range(7)], ids, ids).tolist()

    whole = drawn()
    for numbers in (1, 100, 149, 350):
        monkeypatch.setattr(sampling, "LOGITS_AT_ONCE", numbers)
        assert drawn() == whole


def test_the_repetition_penalty_applies_to_tokens_of_the_text_but_not_to_padding():
    """Positive logits of these tokens are divided by the penalty, negative logits are multiplied by it."""
    ids, mask = torch.tensor([[0, 3, 1]]), torch.tensor([[0, 1, 1]])
    greedy = Sampler(temperature=0, repetition_penalty=2.0)
    for logits, expected in (
        ([5.0, 4.0, 1.0, 9.0], 0),
        ([1.0, 4.0, 1.9, 3.0], 1),
        ([-3.0, -1.0, -2.5, -1.0], 1),
        ([-3.0, -2.0, -2.5, -2.0], 2),
    ):
        assert greedy(torch.tensor([logits]), [], ids, mask).item() == expected
