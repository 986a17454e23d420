import numpy as np
import pytest
import torch

from toxloc import ContrastSet, Localization, ToxlocError, localize
from toxloc.batching import batches
from toxloc.statistics import collect, collect_contrast

from .conftest import TEXTS, random_model

PAIRS = ContrastSet(TEXTS[:2], TEXTS[2:])


def contrast_with(lm, hooks):
    """NLL_T - NLL_N per token, by plain forward passes under hooks."""
    values = []
    for texts in (PAIRS.toxic, PAIRS.neutral):
        total, count = 0.0, 0
        for batch in batches(lm, texts):
            with torch.no_grad(), lm.hooked.hooks(fwd_hooks=hooks):
                logp = lm.forward(batch.ids, batch.mask)[:, :-1].log_softmax(-1)
            real = batch.mask[:, 1:].bool()
            total -= logp.gather(-1, batch.ids[:, 1:, None])[..., 0][real].sum().item()
            count += int(real.sum())
        values.append(total / count)
    return values[0] - values[1]


def scaled_after_first(factor, neuron=slice(None)):
    def hook(a, hook):
        a = a.clone()
        a[:, 1:, neuron] *= factor
        return a
    return hook


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_attribution_is_the_slope_of_the_contrast_when_a_part_is_scaled_down(family):
    lm = random_model(family, dtype=torch.float64, scale=3.0)
    loc = localize(lm, PAIRS, ["attribution"])
    h = 3e-3  # families that norm in float32 whatever the weights are would drown a smaller step

    def slope(layer, neuron):
        name = lm.neuron_hook(layer)
        less, more = (contrast_with(lm, [(name, scaled_after_first(1 + s * h, neuron))]) for s in (-1, 1))
        return (less - more) / (2 * h)

    for layer in range(lm.n_layers):
        assert loc.layer_scores("attribution")[layer] == pytest.approx(slope(layer, slice(None)), rel=5e-3, abs=5e-6)
        for neuron in (0, 7, 31):
            expected = slope(layer, neuron)
            assert loc.neuron_scores("attribution")[layer, neuron] == pytest.approx(expected, rel=5e-3, abs=5e-6)


def test_activation_by_hand(tiny):
    toxic, neutral = collect(tiny, PAIRS.toxic), collect(tiny, PAIRS.neutral)
    loc = localize(tiny, PAIRS, ["activation"])
    for layer in range(tiny.n_layers):
        t, n = toxic.neurons[layer], neutral.neurons[layer]
        pooled = np.sqrt((t.var.numpy() * t.count + n.var.numpy() * n.count) / (t.count + n.count))
        np.testing.assert_allclose(loc.neuron_scores("activation")[layer], (t.mean - n.mean).numpy() / pooled)
        t, n = toxic.outputs[layer], neutral.outputs[layer]
        pooled = np.sqrt((t.var.numpy() * t.count + n.var.numpy() * n.count) / (t.count + n.count))
        z = (t.mean - n.mean).numpy() / pooled
        assert loc.layer_scores("activation")[layer] == pytest.approx(np.linalg.norm(z) / np.sqrt(tiny.d_model))


def test_gradient_norm_is_the_norm_of_g(tiny):
    s = collect_contrast(tiny, PAIRS)
    loc = localize(tiny, PAIRS, ["gradient_norm"], statistics=s)
    assert loc.layer_scores("gradient_norm")[1] == pytest.approx(s.G(1).norm().item(), rel=1e-5)
    assert loc.neuron_scores("gradient_norm")[1, 3] == pytest.approx(s.G(1)[3].norm().item(), rel=1e-5)


def test_neuron_attributions_add_up_to_the_layers(tiny):
    loc = localize(tiny, PAIRS)
    np.testing.assert_allclose(loc.neuron_scores("attribution").sum(1), loc.layer_scores("attribution"))


def test_equal_sets_have_no_contrast(tiny):
    loc = localize(tiny, ContrastSet(TEXTS, TEXTS))
    for score in loc.scores:
        assert np.abs(loc.layer_scores(score)).max() == pytest.approx(0, abs=1e-9)


def test_tops_are_ordered_and_name_layer_and_neuron():
    neurons = np.array([[0.0, 3.0, -5.0], [9.0, 1.0, 2.0]])
    loc = Localization({"s": np.array([1.0, 2.0])}, {"s": neurons}, {"model": "m"})
    assert loc.top_layers("s", 2) == [1, 0]
    assert loc.top_neurons("s", 3) == [(1, 0), (0, 1), (1, 2)]
    with pytest.raises(ToxlocError, match="7 neurons; this model has 6"):
        loc.top_neurons("s", 7)
    with pytest.raises(ToxlocError, match="'x' was not computed; there are s"):
        loc.layer_scores("x")


def test_save_and_load(tiny, tmp_path):
    loc = localize(tiny, PAIRS)
    loc.save(tmp_path / "loc")
    again = Localization.load(tmp_path / "loc")
    assert again.about == loc.about
    for score in loc.scores:
        np.testing.assert_array_equal(again.neuron_scores(score), loc.neuron_scores(score))
    with pytest.raises(ToxlocError, match="not empty"):
        loc.save(tmp_path / "loc")
    with pytest.raises(ToxlocError, match="holds no localization"):
        Localization.load(tmp_path)


def test_unknown_score(tiny):
    with pytest.raises(ToxlocError, match="Unknown score heat; choose from activation"):
        localize(tiny, PAIRS, ["heat"])


def test_scores_have_the_documented_shapes_on_the_built_in_model(lm, pairs):
    loc = localize(lm, pairs)
    assert loc.layer_scores("attribution").shape == (8,)
    assert loc.neuron_scores("activation").shape == (8, 1024)
    assert loc.neuron_scores("activation").dtype == np.float64
