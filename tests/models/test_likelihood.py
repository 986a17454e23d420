import pytest
import torch

from benchmarks.families import DENSE
from tests.conftest import TEXTS, random_model
from toxloc.models import likelihood
from toxloc.models.batching import Batch, batches
from toxloc.models.likelihood import log_probabilities, logit_rows, predicting, summed_nll, targets, token_nll


def whole_logits(lm, batch):
    """All logits of the plain model at once, at the positions that predict a token."""
    logits = lm.hf(input_ids=batch.ids, attention_mask=batch.mask).logits[:, :-1]
    return logits[batch.mask[:, 1:].bool()].float()


@pytest.fixture
def few_rows(monkeypatch):
    monkeypatch.setattr(likelihood, "LOGITS_AT_ONCE", {"cpu": 1})
    monkeypatch.setattr(likelihood, "FEWEST_ROWS", 3)


@pytest.mark.parametrize("family", sorted(DENSE))
def test_the_loss_of_every_family_equals_that_of_its_logits(family, few_rows):
    lm = random_model(family)
    batch = next(batches(lm, TEXTS))
    with torch.no_grad():
        losses = token_nll(lm, predicting(lm, batch), targets(batch))
        expected = -whole_logits(lm, batch).double().log_softmax(-1)
    expected = expected.gather(1, batch.ids[:, 1:][batch.mask[:, 1:].bool()][:, None])[:, 0]
    torch.testing.assert_close(losses.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "phi", "gemma2", "granite"])  # plain, a bias, a soft cap, a factor
def test_log_probabilities_of_several_tokens(family, few_rows):
    lm = random_model(family)
    batch = next(batches(lm, TEXTS))
    torch.manual_seed(1)
    hidden = predicting(lm, batch)
    tokens = torch.randint(8192, (len(hidden), 3))
    with torch.no_grad():
        expected = whole_logits(lm, batch).double().log_softmax(-1).gather(1, tokens)
    torch.testing.assert_close(log_probabilities(lm, hidden, tokens).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "phi", "gemma2"])  # plain, with a bias, with a soft cap
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_equals_that_of_autograd_through_all_logits(family, dtype, few_rows):
    lm = random_model(family, scale=4.0, dtype=dtype)
    torch.manual_seed(1)
    hidden = torch.randn(10, lm.d_model).to(dtype).requires_grad_(True)
    token, weight = torch.randint(8192, (10,)), torch.rand(10)
    (token_nll(lm, hidden, token) * weight).sum().backward()
    gradient, hidden.grad = hidden.grad, None
    head, cap = lm.hf.get_output_embeddings(), getattr(lm.hf.config, "final_logit_softcapping", None)
    logits = head(hidden).float()
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    (torch.nn.functional.cross_entropy(logits, token, reduction="none") * weight).sum().backward()
    close = dict(rtol=1e-4, atol=1e-5) if dtype == torch.float32 else dict(rtol=0.05, atol=0.05)
    torch.testing.assert_close(gradient, hidden.grad, **close)
    assert gradient.abs().max() > 0.01


def test_the_loss_by_hand(tiny):
    batch = Batch(torch.tensor([[0, 5, 9, 7], [0, 6, 3, 3]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]), [0, 1])
    loss, count = summed_nll(tiny, batch)
    with torch.no_grad():
        logp = tiny.hf(input_ids=batch.ids, attention_mask=batch.mask).logits.double().log_softmax(-1)
    by_hand = logp[0, 0, 5] + logp[0, 1, 9] + logp[0, 2, 7] + logp[1, 0, 6]
    assert count == 4
    assert targets(batch).tolist() == [5, 9, 7, 6]
    assert loss.item() == pytest.approx(-by_hand.item(), rel=1e-5)


def test_logits_are_computed_for_all_rows_in_steps(tiny, few_rows):
    hidden = torch.randn(8, tiny.d_model)
    parts = list(logit_rows(tiny, hidden))
    assert [rows.indices(8)[:2] for rows, _ in parts] == [(0, 3), (3, 6), (6, 8)]
    torch.testing.assert_close(torch.cat([logits for _, logits in parts]), tiny.hf.get_output_embeddings()(hidden))
