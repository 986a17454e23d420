import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.conftest import TEXTS, random_hf, random_model, tokenizer
from tests.models.test_hooked_transformer import with_class
from toxloc import ContrastSet, ToxlocError, collect_contrast
from toxloc.localization.text_statistics import collect
from toxloc.localization.token_view import TokenView, token_view
from toxloc.models.loaded import LoadedModel
from toxloc.support.masking import mask

from .by_hand import ids_of, rows_of


def nlls_with_one_position_scaled(lm, ids, layer, factor):
    """Return the summed NLL of a text with the output of a layer's neurons scaled at position t, for every t.

    If a norm follows the MLP, it would undo the scaling, so the output of the norm is scaled instead.
    """
    normed = lm.at(layer).has_norm
    place = lm.at(layer).write_hook if normed else lm.at(layer).keys_hook
    n = ids.shape[1]
    t = torch.arange(n)

    def scale(a):
        a = a.clone()
        a.view(n, n, -1)[t, t] *= factor
        return a

    ids = ids.expand(n, n)
    with torch.no_grad(), lm.hooks([(place, scale)]):
        logits = lm.forward(ids, torch.ones_like(ids)).double()
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none").sum(1)


def test_attribution_is_the_slope_of_the_nll_when_neurons_are_scaled_at_a_position(any_family):
    lm, ids, h = any_family, ids_of(any_family, TEXTS[0]), 1e-2
    view = token_view(lm, TEXTS[0])
    assert view.attribution.shape == (lm.n_layers, ids.shape[1])
    assert view.attribution.dtype == np.float64
    less, more = (
        torch.stack([nlls_with_one_position_scaled(lm, ids, layer, factor) for layer in range(lm.n_layers)])
        for factor in (1 - h, 1 + h)
    )
    slopes = ((less - more) / (2 * h)).numpy()
    np.testing.assert_allclose(view.attribution, slopes, rtol=1e-2, atol=2e-3)
    assert np.abs(slopes).max() > 0.1


def test_attribution_adds_up_to_the_attribution_of_the_text(any_family):
    for skip_first in (False, True):
        gathered = collect(any_family, [TEXTS[2]], skip_first=skip_first).contributions.attribution
        view = token_view(any_family, TEXTS[2]).attribution[:, int(skip_first) :].sum(1)
        np.testing.assert_allclose(view, torch.stack(list(gathered.values()))[:, 0], rtol=1e-4, atol=1e-5)


def test_a_view_leaves_the_model_unchanged(tiny):
    weight = tiny.down_projection(0).weight
    frozen = token_view(tiny, TEXTS[0])
    weight.requires_grad_(True)
    np.testing.assert_array_equal(token_view(tiny, TEXTS[0]).attribution, frozen.attribution)
    assert weight.grad is None
    assert all(not point.fwd_hooks for point in tiny.hooked.hook_dict.values())


def test_activation_is_the_standardised_output_along_the_toxic_direction(any_family):
    lm, text = any_family, "A new text, of which the statistics know nothing."
    s = collect_contrast(lm, ContrastSet(TEXTS[:2], TEXTS[2:4]), gradients=False)
    view = token_view(lm, text, s)
    assert token_view(lm, text).activation is None
    for layer in range(lm.n_layers):
        T, N = (rows_of(lm, texts, layer)[1].numpy() for texts in (TEXTS[:2], TEXTS[2:4]))
        deviations = np.concatenate([T - T.mean(0), N - N.mean(0)])
        sd = np.sqrt((deviations**2).mean(0))
        d = (T.mean(0) - N.mean(0)) / sd
        d /= np.sqrt((d**2).sum())
        expected = [
            sum((row[i] - (T.mean(0)[i] + N.mean(0)[i]) / 2) / sd[i] * d[i] for i in range(lm.d_model))
            for row in rows_of(lm, [text], layer)[1].numpy()
        ]
        np.testing.assert_allclose(view.activation[layer, 1:], expected, rtol=1e-3, atol=1e-4)


def test_toxic_tokens_lie_on_the_toxic_side_of_the_middle(tiny):
    """Averaged over a set, activation is half the distance of the means, with opposite signs on the two sides."""
    s = collect_contrast(tiny, ContrastSet(TEXTS[:1], TEXTS[1:2]), gradients=False)
    sides = [token_view(tiny, text, s).activation[:, 1:].mean(1) for text in TEXTS[:2]]
    np.testing.assert_allclose(sides[0], -sides[1], rtol=1e-4)
    assert (sides[0] > 0).all()


def test_statistics_of_attentions_do_not_change_the_view(tiny):
    pairs = ContrastSet(TEXTS[:2], TEXTS[2:4])
    mlps, both = (collect_contrast(tiny, pairs, gradients=False, sites=sites) for sites in (None, tiny.sites()))
    np.testing.assert_allclose(
        token_view(tiny, TEXTS[4], mlps).activation, token_view(tiny, TEXTS[4], both).activation, rtol=1e-6
    )


def test_a_contrast_without_difference_gives_an_activation_of_0(tiny):
    s = collect_contrast(tiny, ContrastSet(TEXTS[:1], TEXTS[:1]), gradients=False)
    np.testing.assert_array_equal(token_view(tiny, TEXTS[1], s).activation, 0)


def test_the_tokens_of_a_view_spell_the_text_and_words_are_masked_as_a_whole(lm):
    text = "He is insufferablest, and dumb."
    view = token_view(lm, text)
    assert view.tokens[0] == lm.tokenizer.bos_token
    assert "".join(view.tokens[1:]) == text
    assert len(view.tokens) > 1 + len(text.split()) + 2  # the long word is several tokens
    assert view.shown(masked=False) == view.tokens
    assert "".join(view.shown()[1:]) == mask(text)
    assert [len(token) for token in view.shown()] == [len(token) for token in view.tokens]
    assert "dumb" not in repr(view) + str(view)
    assert len(token_view(lm, text, max_length=4).tokens) == 4


def test_too_short_texts_and_statistics_of_another_model_are_errors(tiny):
    with pytest.raises(ToxlocError, match="is empty"):
        token_view(tiny, " ")
    with pytest.raises(ToxlocError, match="one token"):
        token_view(tiny, "Hello", max_length=1)
    others = collect_contrast(random_model("gpt2", n_layer=3), ContrastSet(TEXTS[:1], TEXTS[1:2]), gradients=False)
    with pytest.raises(ToxlocError, match="another shape; gather them on random-gpt2"):
        token_view(tiny, TEXTS[0], others)


def test_the_heatmap_is_drawn_by_plots(monkeypatch):
    monkeypatch.setattr("toxloc.plots.tokens.token_heatmap", lambda *args: args)
    view = TokenView("a", ["a"], np.zeros((1, 1)), None)
    assert view.heatmap() == (view, "attribution", True)
    assert view.heatmap("activation", masked=False) == (view, "activation", False)


@with_class
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_hooked_transformer_without_hugging_face_gives_the_same_view(family):
    full = LoadedModel.from_hf(random_hf(family), tokenizer(), hooks="transformer")
    alone = LoadedModel.of(full.hooked)
    assert alone.hf is None
    pairs = ContrastSet(TEXTS[:2], TEXTS[2:4])
    view, expected = (token_view(lm, TEXTS[4], collect_contrast(lm, pairs, gradients=False)) for lm in (alone, full))
    assert view.tokens == expected.tokens
    np.testing.assert_allclose(view.attribution, expected.attribution, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(view.activation, expected.activation, rtol=1e-4, atol=1e-5)
