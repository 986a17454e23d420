import numpy as np
import pytest
import torch

from tests.conftest import TEXTS, random_model
from toxloc import ContrastSet, Localization, ToxlocError, localize
from toxloc.localization.statistics import _Collector, collect, collect_contrast
from toxloc.models.batching import batches

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


@pytest.mark.parametrize("family", ["gemma2", "olmo2"])
def test_with_a_norm_after_the_mlp_a_layer_is_what_the_norm_puts_out(family):
    lm = random_model(family, dtype=torch.float64, scale=3.0)
    found = localize(lm, PAIRS, ["attribution"]).layer_scores("attribution")
    h = 3e-3
    for layer in range(lm.n_layers):
        name = lm.contribution_hook(layer)
        less, more = (contrast_with(lm, [(name, scaled_after_first(1 + s * h))]) for s in (-1, 1))
        assert found[layer] == pytest.approx((less - more) / (2 * h), rel=5e-3, abs=5e-6)


def test_activation_by_hand(tiny):
    toxic, neutral = collect(tiny, PAIRS.toxic), collect(tiny, PAIRS.neutral)
    loc = localize(tiny, PAIRS, ["activation"])
    for layer in range(tiny.n_layers):
        t, n = toxic.neurons[layer], neutral.neurons[layer]
        pooled = np.sqrt((t.var.numpy() * t.count + n.var.numpy() * n.count) / (t.count + n.count))
        np.testing.assert_allclose(loc.neuron_scores("activation")[layer], (t.mean - n.mean).numpy() / pooled)
        rows = [outputs_of(tiny, texts, layer) for texts in (PAIRS.toxic, PAIRS.neutral)]
        pooled = np.sqrt(sum(r.var(0) * len(r) for r in rows) / sum(map(len, rows)))
        z = (rows[0].mean(0) - rows[1].mean(0)) / pooled
        score = np.linalg.norm(z) / np.sqrt(tiny.d_model)
        assert loc.layer_scores("activation")[layer] == pytest.approx(score, rel=1e-4)


def outputs_of(lm, texts, layer):
    """m at every token but the first, text by text, with transformer-lens's own cache."""
    rows = []
    for text in texts:
        ids = torch.tensor([[0, *lm.tokenizer(text)["input_ids"]]])
        _, cache = lm.hooked.run_with_cache(ids, attention_mask=torch.ones_like(ids))
        rows.append(cache[lm.output_hook(layer)].reshape(ids.shape[1], -1)[1:])
    return torch.cat(rows).double().numpy()


def test_gradient_norm_is_the_norm_of_g(tiny):
    s = collect_contrast(tiny, PAIRS)
    loc = localize(tiny, PAIRS, ["gradient_norm"], statistics=s)
    assert loc.layer_scores("gradient_norm")[1] == pytest.approx(s.G(1).norm().item(), rel=1e-5)
    assert loc.neuron_scores("gradient_norm")[1, 3] == pytest.approx(s.G(1)[3].norm().item(), rel=1e-5)


def test_neuron_attributions_add_up_to_the_layers(tiny):
    loc = localize(tiny, PAIRS)
    np.testing.assert_allclose(loc.neuron_scores("attribution").sum(1), loc.layer_scores("attribution"), rtol=1e-4)


def test_equal_sets_have_no_contrast(tiny):
    loc = localize(tiny, ContrastSet(TEXTS, TEXTS))
    for score in loc.scores:
        assert np.abs(loc.layer_scores(score)).max() == pytest.approx(0, abs=1e-9)


def test_tops_are_ordered_and_name_layer_and_neuron():
    neurons = np.array([[0.0, 3.0, -5.0], [9.0, 1.0, 2.0]])
    loc = Localization({"s": np.array([1.0, 2.0])}, {"s": neurons}, {"model": "m"}, np.abs(neurons))
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
        np.testing.assert_array_equal(again.uncertainty[score].p, loc.uncertainty[score].p)
    np.testing.assert_array_equal(again.activation_size, loc.activation_size)
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


def test_the_activation_size_is_a_root_mean_square(tiny):
    loc = localize(tiny, PAIRS, ["activation"])
    sums, count = 0.0, 0
    for text in [*PAIRS.toxic, *PAIRS.neutral]:
        ids = torch.tensor([[0, *tiny.tokenizer(text)["input_ids"]]])
        _, cache = tiny.hooked.run_with_cache(ids, attention_mask=torch.ones_like(ids))
        sums = sums + (cache[tiny.neuron_hook(1)][0, 1:].double() ** 2).sum(0).numpy()
        count += ids.shape[1] - 1
    np.testing.assert_allclose(loc.activation_size[1], np.sqrt(sums / count), rtol=1e-4)


def test_the_table_has_a_row_for_every_score_and_layer(tiny):
    loc = localize(tiny, PAIRS, ["attribution", "editability"], draws=50)
    table = loc.table()
    assert len(table) == 4
    row = table[(table.score == "attribution") & (table.layer == 1)].iloc[0]
    assert row.value == loc.layer_scores("attribution")[1]
    assert row.p_adjusted == loc.uncertainty["attribution"].p_adjusted[1]
    assert row.low <= row.high
    assert table[table.score == "editability"].p.isna().all()
    neurons = loc.neuron_table("attribution", 3)
    assert list(zip(neurons.layer, neurons.neuron, strict=True)) == loc.top_neurons("attribution", 3)
    assert list(neurons.attribution) == sorted(loc.neuron_scores("attribution").ravel())[:-4:-1]


def test_without_draws_there_is_no_uncertainty(tiny):
    assert localize(tiny, PAIRS, draws=0).uncertainty == {}
    with pytest.raises(ToxlocError, match="draws=-1"):
        localize(tiny, PAIRS, draws=-1)


def test_the_same_seed_gives_the_same_intervals_and_the_model_is_read_once(tiny, monkeypatch):
    passes = []
    monkeypatch.setattr("toxloc.localization.statistics._Collector.hooked",
                        lambda self, hooked=_Collector.hooked: passes.append(1) or hooked(self))
    one, two = (localize(tiny, PAIRS, draws=20, seed=s).uncertainty["attribution"] for s in (0, 0))
    np.testing.assert_array_equal(one.low, two.low)
    assert len(passes) == 4  # a toxic and a neutral pass for each call, whatever the number of draws


def test_real_contrast_is_told_from_none(lm, pairs):
    """Real labels are far out in their null; labels dealt at random are not."""
    real = localize(lm, pairs).uncertainty
    assert real["activation"].p_adjusted.max() < 0.01
    rng = np.random.default_rng(3)
    swap = rng.random(len(pairs.toxic)) < 0.5
    sides = [[b if s else a for a, b, s in zip(x, y, swap, strict=True)]
             for x, y in ((pairs.toxic, pairs.neutral), (pairs.neutral, pairs.toxic))]
    none = localize(lm, ContrastSet(*sides, paired=True)).uncertainty
    for score in ("activation", "gradient_norm", "attribution"):
        assert none[score].p_adjusted.min() > 0.01, score
