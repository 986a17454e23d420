import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import TEXTS, random_model
from toxloc.localization import contributions
from toxloc.localization.contributions import Gatherer, Peaks, random_groups
from toxloc.localization.text_statistics import collect

from .by_hand import norm_of_heads, rows_of


@given(st.integers(1, 700), st.integers(1, 700), st.booleans())
@settings(max_examples=50, deadline=None)
def test_groups_are_limited_in_number_and_of_nearly_equal_size(n_toxic, n_neutral, paired):
    if paired:
        n_neutral = n_toxic
    sides = random_groups(n_toxic, n_neutral, paired)
    counts = [np.bincount(side) for side in sides]
    assert max(map(len, counts)) <= contributions.GROUPS
    for count in counts:
        assert count.min() >= 1
        assert count.max() - count.min() <= 1
    if paired:
        np.testing.assert_array_equal(*sides)


def test_up_to_128_texts_are_one_group_each():
    assert sorted(random_groups(128, 5, False)[0]) == list(range(128))


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])  # none has a norm after a site
def test_a_group_holds_the_sums_of_its_texts(family):
    lm = random_model(family)
    group = np.array([0, 1, 0, 2, 1])
    sums = collect(lm, TEXTS, group=group, sites=lm.sites()).contributions
    for g in range(3):
        passes = [
            collect(lm, [text], group=np.array([0]), sites=lm.sites()) for i, text in enumerate(TEXTS) if group[i] == g
        ]
        assert sums.predicted[g] == sum(single.n_predicted for single in passes)
        assert sums.tokens[g] == sum(single.n_tokens for single in passes)
        for site in lm.sites():
            G = sum(single.G[site] * single.n_predicted for single in passes)
            expected = -(G * lm.W_out(site)).sum().item()
            assert sums.attribution[site][g].item() == pytest.approx(expected, rel=1e-3, abs=1e-4)
            # A sketch as large as the matrix is a rotation of the matrix and preserves its norm.
            assert sums.sketch[site][g].norm().item() == pytest.approx(G.norm().item(), rel=0.2)
            outputs = sum(single.contributions.outputs[site][0] for single in passes)
            torch.testing.assert_close(sums.outputs[site][g], outputs, rtol=1e-4, atol=1e-5)


def test_predicted_tokens_are_counted_without_gradients(tiny):
    """The first token of each text is not predicted."""
    sums = collect(tiny, TEXTS, gradients=False).contributions
    assert sums.predicted.sum() == collect(tiny, TEXTS).n_predicted


def test_a_sketch_preserves_inner_products_on_average(monkeypatch, tiny):
    """Exactly if the sketch is as large as the gradient; on average over random gradients if it is smaller."""
    view, generator = tiny.at("0.attention"), torch.Generator().manual_seed(0)

    def inner_products(n):
        gatherer = Gatherer(tiny, [view], np.array([0]), gradients=True, peaks=False)
        P, Q = gatherer.P[view.d_in], gatherer.Q
        A, B = (torch.randn(n, view.d_in, tiny.d_model, generator=generator) for _ in range(2))
        return ((P.T @ A @ Q) * (P.T @ (A + B) @ Q)).sum((1, 2)), (A * (A + B)).sum((1, 2))

    sketched, exact = inner_products(3)
    torch.testing.assert_close(sketched, exact, rtol=1e-4, atol=1e-3)
    monkeypatch.setattr(contributions, "SKETCH", 8)
    sketched, exact = inner_products(300)
    assert not torch.allclose(sketched, exact, rtol=0.01)
    assert sketched.mean().item() == pytest.approx(exact.mean().item(), rel=0.1)


def test_peaks_are_the_largest_activations_of_each_text(any_family):
    """The activation of a neuron is a, and that of a head is the norm of its z."""
    lm = any_family
    stored = collect(lm, TEXTS, gradients=False, peaks=True, sites=lm.sites()).contributions.peaks
    for site in lm.sites():
        peaks, index = stored.at(site)
        assert sorted(index) == list(range(len(TEXTS)))
        for row, i in zip(peaks, index, strict=True):
            keys = rows_of(lm, [TEXTS[i]], site)[0].numpy()
            expected = (keys if site.part == "mlp" else norm_of_heads(keys, 2)).max(0)
            np.testing.assert_allclose(row, expected, rtol=1e-3, atol=1e-4)


def test_a_text_without_a_token_that_counts_has_no_peaks(tiny):
    """Each site has separate rows in the file, texts come in any order, and text 0 has no token that counts."""
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


def test_peaks_are_rounded_to_14_bits_so_that_equal_peaks_tie(tiny):
    peaks = Peaks([tiny.at("0.attention")], n_texts=2)
    peaks.write("0.attention", [0, 1], torch.tensor([[1.0, -3.0], [1.0 + 2e-5, -3.0001]]))
    (first, second), _ = peaks.at("0.attention")
    np.testing.assert_array_equal(first, [1.0, -3.0])
    assert second[0] == first[0]
    assert second[1] == -3.0  # between 2 and 4, rounded values are 2**-12 apart
