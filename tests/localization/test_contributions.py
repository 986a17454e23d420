import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import TEXTS, random_model
from toxloc.localization import contributions
from toxloc.localization.contributions import Peaks, deal
from toxloc.localization.statistics import collect

from .by_hand import norm_of_heads, rows_of


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


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])  # none has a norm after a site
def test_a_group_holds_what_its_texts_alone_would_give(family):
    lm = random_model(family)
    group = np.array([0, 1, 0, 2, 1])
    found = collect(lm, TEXTS, group=group, sites=lm.sites()).contributions
    for g in range(3):
        alone = [
            collect(lm, [text], group=np.array([0]), sites=lm.sites()) for i, text in enumerate(TEXTS) if group[i] == g
        ]
        assert found.predicted[g] == sum(one.n_predicted for one in alone)
        assert found.tokens[g] == sum(one.n_tokens for one in alone)
        for site in lm.sites():
            G = sum(one.G[site] * one.n_predicted for one in alone)
            own = -(G * lm.W_out(site)).sum().item()
            assert found.attribution[site][g].item() == pytest.approx(own, rel=1e-3, abs=1e-4)
            # A sketch no smaller than the matrix is a rotation of it, so that it keeps its norm.
            assert found.sketch[site][g].norm().item() == pytest.approx(G.norm().item(), rel=0.2)
            outputs = sum(one.contributions.outputs[site][0] for one in alone)
            torch.testing.assert_close(found.outputs[site][g], outputs, rtol=1e-4, atol=1e-5)


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
    """Of a neuron its a, of a head the norm of its z."""
    lm = any_family
    found = collect(lm, TEXTS, gradients=False, peaks=True, sites=lm.sites()).contributions.peaks
    for site in lm.sites():
        peaks, index = found.at(site)
        assert sorted(index) == list(range(len(TEXTS)))
        for row, i in zip(peaks, index, strict=True):
            keys = rows_of(lm, [TEXTS[i]], site)[0].numpy()
            alone = (keys if site.part == "mlp" else norm_of_heads(keys, 2)).max(0)
            np.testing.assert_allclose(row, alone, rtol=1e-3, atol=1e-4)


def test_a_text_of_which_nothing_is_kept_has_no_peaks(tiny):
    """Each site has its own rows in the file, texts may come in any order, and text 0 has no token that counts."""
    views = [tiny.at(0), tiny.at("0.attention"), tiny.at(1)]
    peaks = Peaks(views, n_texts=5)
    for nth, view in enumerate(views):
        for batch in ([4, 0], [2], [1, 3]):
            rows = torch.tensor([[10.0 * i + nth] * view.n_units for i in batch])
            rows[[i == 0 for i in batch]] = -torch.inf
            peaks.write(view.site, batch, rows)
    for nth, view in enumerate(views):
        values, index = peaks.at(view.site)
        assert values.shape == (4, view.n_units)
        assert values.dtype == np.float32
        assert list(index) == [1, 2, 3, 4]
        np.testing.assert_array_equal(values[:, -1], [10 + nth, 20 + nth, 30 + nth, 40 + nth])


def test_peaks_are_rounded_to_14_bits_so_that_equal_ones_tie(tiny):
    peaks = Peaks([tiny.at("0.attention")], n_texts=2)
    peaks.write("0.attention", [0, 1], torch.tensor([[1.0, -3.0], [1.0 + 2e-5, -3.0001]]))
    (one, other), _ = peaks.at("0.attention")
    np.testing.assert_array_equal(one, [1.0, -3.0])
    assert one[0] == other[0]
    assert other[1] == -3.0  # the steps from 2 to 4 are 2**-12
