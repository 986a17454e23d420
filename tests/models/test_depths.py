import pytest
import torch

from benchmarks.families import LAYOUTS, random_model
from tests.conftest import TEXTS
from toxloc import ToxlocError
from toxloc.models.batching import batches
from toxloc.models.depths import hidden_by_depth
from toxloc.models.likelihood import logit_rows


@pytest.mark.parametrize("family", [*LAYOUTS, "bloom", "openai-gpt", "granite", "mamba", "rwkv"])
def test_the_first_depth_is_the_embedding_and_the_last_gives_the_logits(family):
    lm = random_model(family)
    batch = next(batches(lm, TEXTS))
    with torch.no_grad():
        hidden = hidden_by_depth(lm, batch, batch.real)
        plain = lm.hf(input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=True)
    assert hidden.shape == (lm.n_layers + 1, int(batch.mask.sum()), lm.d_model)
    logits = torch.cat([rows for _, rows in logit_rows(lm, hidden[-1])])
    torch.testing.assert_close(logits, plain.logits[batch.real], rtol=1e-4, atol=1e-4)
    states = list(plain.hidden_states)
    if family in ("mamba", "rwkv"):  # their list begins after the first block
        states.insert(0, lm.hf.get_input_embeddings()(batch.ids))
    norm = torch.nn.Identity() if lm.structure.final_norm is None else lm.final_norm
    for depth, state in enumerate(states[: lm.n_layers]):
        torch.testing.assert_close(hidden[depth], norm(state[batch.real]), rtol=1e-4, atol=1e-4)


def test_only_the_kept_positions_are_read_and_reduced(tiny):
    batch = next(batches(tiny, TEXTS))
    kept = batch.real.clone()
    kept[:, ::2] = False
    whole = hidden_by_depth(tiny, batch, torch.ones_like(kept))
    summed = hidden_by_depth(tiny, batch, kept, lambda hidden: hidden.sum(0))
    expected = (whole.unflatten(1, kept.shape) * kept[..., None]).sum((1, 2))
    torch.testing.assert_close(summed, expected, rtol=1e-4, atol=1e-4)


def test_a_model_with_several_residual_streams_is_refused():
    lm = random_model("deepseek_v4")
    batch = next(batches(lm, TEXTS))
    with pytest.raises(ToxlocError, match="random-deepseek_v4 does not read the residual stream"):
        hidden_by_depth(lm, batch, batch.real)
    assert not any(module._forward_hooks for module in lm.tree.module(lm.structure.blocks[0]).modules())


def test_a_wrong_final_norm_is_noticed(tiny):
    """The hidden states after the last block would not be those of the model."""
    batch = next(batches(tiny, TEXTS))
    object.__setattr__(tiny.structure, "final_norm", None)
    with pytest.raises(ToxlocError, match="no logit lens"):
        hidden_by_depth(tiny, batch, batch.real)
