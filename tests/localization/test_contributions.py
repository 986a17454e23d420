import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import TEXTS, random_model
from toxloc.localization import contributions
from toxloc.localization.contributions import Peaks, deal
from toxloc.localization.statistics import collect


@given(st.integers(1, 700), st.integers(1, 700), st.booleans())
@settings(max_examples=50, deadline=None)
def test_groups_are_few_and_of_nearly_one_size(n_toxic, n_neutral, paired):
    if paired:
        n_neutral = n_toxic
    sides = deal(n_toxic, n_neutral, paired)
    counts = [np.bincount(side) for side in sides]
    assert max(map(len, counts)) <= contributions.GROUPS
    for count in counts:
        assert count.min() >= 1
        assert count.max() - count.min() <= 1
    if paired:
        np.testing.assert_array_equal(*sides)


def test_so_many_texts_are_groups_of_their_own():
    assert sorted(deal(128, 5, False)[0]) == list(range(128))


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_a_group_holds_what_its_texts_alone_would_give(family):
    lm = random_model(family)
    group = np.array([0, 1, 0, 2, 1])
    found = collect(lm, TEXTS, group=group).contributions
    for g in range(3):
        alone = [collect(lm, [text], group=np.array([0])) for i, text in enumerate(TEXTS) if group[i] == g]
        assert found.predicted[g] == sum(one.n_predicted for one in alone)
        assert found.tokens[g] == sum(one.n_tokens for one in alone)
        for layer in range(lm.n_layers):
            G = sum(one.G[layer] * one.n_predicted for one in alone)
            own = -(G * lm.W_out(layer)).sum().item()
            assert found.attribution[layer][g].item() == pytest.approx(own, rel=1e-3, abs=1e-4)
            # A sketch no smaller than the matrix is a rotation of it, so that it keeps its norm.
            assert found.sketch[layer][g].norm().item() == pytest.approx(G.norm().item(), rel=0.2)
            outputs = sum(one.contributions.outputs[layer][0] for one in alone)
            torch.testing.assert_close(found.outputs[layer][g], outputs, rtol=1e-4, atol=1e-5)


def test_a_sketch_keeps_norms_and_angles_on_average(monkeypatch):
    """Exactly if it is as large as the matrix; on average over many random ones if it is smaller."""
    torch.manual_seed(0)
    A, B = torch.randn(40, 20), torch.randn(40, 20)
    P, Q = (contributions._sketcher(d, torch.device("cpu")) for d in A.shape)
    torch.testing.assert_close((P.T @ A @ Q).norm(), A.norm())
    monkeypatch.setattr(contributions, "SKETCH", 8)
    inner = []
    for seed in range(300):
        normal = torch.Generator().manual_seed(seed)
        P, Q = (torch.linalg.qr(torch.randn(d, 8, generator=normal)).Q * (d / 8) ** 0.5 for d in A.shape)
        inner.append(((P.T @ A @ Q) * (P.T @ (A + B) @ Q)).sum())
    assert torch.stack(inner).mean() == pytest.approx((A * (A + B)).sum().item(), rel=0.1)


def test_peaks_are_the_largest_activations_of_each_text(any_family):
    lm = any_family
    found = collect(lm, TEXTS, gradients=False, peaks=True).contributions.peaks
    for layer in range(lm.n_layers):
        peaks, index = found.layer(layer)
        assert sorted(index) == list(range(len(TEXTS)))
        for row, i in zip(peaks, index, strict=True):
            ids = torch.tensor([[0, *lm.tokenizer(TEXTS[i])["input_ids"]]])
            _, cache = lm.hooked.run_with_cache(ids, attention_mask=torch.ones_like(ids))
            alone = cache[lm.neuron_hook(layer)].reshape(ids.shape[1], -1)[1:].max(0).values
            np.testing.assert_allclose(row, alone.numpy(), rtol=1e-3, atol=1e-4)


def test_a_text_of_which_nothing_is_kept_has_no_peaks():
    peaks = Peaks(n_layers=2, d_mlp=3)
    for batch in ([4, 0], [2]):
        peaks.begin(batch)
        for layer in range(2):
            rows = torch.tensor([[10.0 * i + layer] * 3 for i in batch])
            rows[[i == 0 for i in batch]] = -torch.inf
            peaks.write(rows)
    values, index = peaks.layer(1)
    assert list(index) == [4, 2]
    np.testing.assert_array_equal(values[:, 0], [41, 21])
