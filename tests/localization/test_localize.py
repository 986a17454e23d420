import numpy as np
import pytest
import torch

from benchmarks.families import DENSE
from tests.conftest import TEXTS, random_model
from toxloc import ContrastSet, Localization, ToxlocError, localize
from toxloc.localization.score_table import SCORES
from toxloc.localization.statistics import collect_contrast
from toxloc.localization.uncertainty import Weights
from toxloc.models.batching import batches
from toxloc.models.sites import Site

from . import prefixes_by_hand
from .by_hand import norm_of_heads, rows_of, slope_of

BOTH = ("mlp", "attention")
PAIRS = ContrastSet(TEXTS[:2], TEXTS[2:])


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_attribution_is_the_slope_of_the_contrast_when_a_part_is_scaled_down(family):
    lm = random_model(family, dtype=torch.float64, scale=3.0)
    loc = localize(lm, PAIRS, ["attribution"], parts=BOTH, draws=0)
    h = 3e-3  # rounding hides a smaller step in families whose norms always compute in float32
    for site in loc.sites():
        view, units = lm.at(site), loc.neuron_scores("attribution", site.part)[site.layer]
        of_site = slope_of(lm, PAIRS, view.keys_hook, h)
        assert loc.site_scores("attribution")[site] == pytest.approx(of_site, rel=5e-3, abs=5e-6)
        for unit in (0, 7, 31) if site.part == "mlp" else (0, 1):
            expected = slope_of(lm, PAIRS, view.keys_hook, h, view.rows(unit))
            assert units[unit] == pytest.approx(expected, rel=5e-3, abs=5e-6)


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "olmo2"])
def test_the_attribution_of_a_site_with_a_norm_is_that_of_the_norms_output(family):
    """The attribution of a unit is still that of its keys, from before the norm."""
    lm = random_model(family, dtype=torch.float64, scale=3.0)
    loc = localize(lm, PAIRS, ["attribution"], parts=BOTH, draws=0)
    h = 3e-3
    for site in loc.sites():
        view = lm.at(site)
        of_site = slope_of(lm, PAIRS, view.write_hook, h)
        assert loc.site_scores("attribution")[site] == pytest.approx(of_site, rel=5e-3, abs=5e-6)
        of_unit = slope_of(lm, PAIRS, view.keys_hook, h, view.rows(1))
        units = loc.neuron_scores("attribution", site.part)[site.layer]
        assert units[1] == pytest.approx(of_unit, rel=1e-2, abs=2e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_the_counterfactual_score_of_a_head_is_the_slope_towards_its_mean(family):
    """D falls by h times the score if z of the head moves by h of the way to its mean, in the plain model."""
    lm, h = random_model(family, dtype=torch.float64, scale=2.0), 3e-3
    # The random embedding of BOS, the padding token, is 0, which a norm after an attention amplifies without limit.
    lm.hf.get_input_embeddings().weight[0].normal_()
    loc = localize(lm, prefixes_by_hand.PAIRS, ["counterfactual"], parts=BOTH, draws=0)
    for site in lm.sites("attention"):
        view, mean = lm.at(site), rows_of(lm, prefixes_by_hand.PAIRS.neutral, site)[0].mean(0)
        scores = loc.neuron_scores("counterfactual", "attention")[site.layer]
        for head in range(view.n_units):
            ends = [mean_difference_with_moved_keys(lm, view, view.rows(head), mean, step) for step in (-h, h)]
            assert scores[head] == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=5e-3, abs=1e-6)
        assert np.abs(scores).max() > 1e-4


@torch.no_grad()
def mean_difference_with_moved_keys(lm, view, rows, mean, step):
    """Return the mean D of the plain model with some keys of a site moved by a step towards their mean."""

    def move(module, args):
        keys = args[0].clone()
        keys[..., rows] += step * (mean[rows] - keys[..., rows])
        return (keys,)

    differences = []
    with view.linear.register_forward_pre_hook(move):
        for i in prefixes_by_hand.USABLE:
            ids, toxic, neutral = prefixes_by_hand.prefix_and_tokens(lm, i)
            logits = lm.hf(input_ids=ids).logits[0, -1]
            differences.append(prefixes_by_hand.difference_of(logits, toxic, neutral).item())
    return np.mean(differences)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "qwen2", "gpt_neox"])
def test_every_score_of_dense_parts_has_heads(family):
    lm = random_model(family, scale=3.0)
    names = [name for name, score in SCORES.items() if score.only is None]
    loc = localize(lm, prefixes_by_hand.PAIRS, names, parts=BOTH, draws=20)
    assert len(names) == len(loc.scores) >= 8
    for name in names:
        heads = loc.neuron_scores(name, "attention")
        assert heads.shape == (lm.n_layers, lm.at(Site(0, "attention")).n_units) and np.isfinite(heads).all()
        assert np.isfinite(loc.layer_scores(name, "attention")).all()
        # Units share the positive attribution of their sites, and a random model can have none.
        assert heads.std() > 0 or (name == "combined" and (loc.layer_scores(name, "attention") < 0).all())
        site, head = loc.top_heads(name, 1)[0]
        assert site.part == "attention" and heads[site.layer, head] == heads.max()
        known = loc.part_uncertainty(name, "attention")
        assert (known is None) == (name == "editability")
        assert known is None or np.isfinite(known.p_adjusted).all()


def test_activation_by_hand(tiny):
    loc = localize(tiny, PAIRS, ["activation"], parts=BOTH)
    for site in loc.sites():
        keys, outputs = zip(*(rows_of(tiny, texts, site) for texts in (PAIRS.toxic, PAIRS.neutral)), strict=True)
        if site.part == "mlp":
            np.testing.assert_allclose(loc.neuron_scores("activation")[site.layer], in_pooled_sd(keys), rtol=1e-4)
        score = np.linalg.norm(in_pooled_sd(outputs)) / np.sqrt(tiny.d_model)
        assert loc.site_scores("activation")[site] == pytest.approx(score, rel=1e-4)


def in_pooled_sd(sides):
    """Return the difference of the means of two sets of rows in pooled standard deviations, column by column."""
    toxic, neutral = (rows.numpy() for rows in sides)
    squares = sum(len(rows) * rows.var(0) for rows in (toxic, neutral))
    return (toxic.mean(0) - neutral.mean(0)) / np.sqrt(squares / (len(toxic) + len(neutral)))


def test_gradient_norm_is_the_norm_of_g(tiny):
    s = collect_contrast(tiny, PAIRS)
    loc = localize(tiny, PAIRS, ["gradient_norm"], statistics=s)
    assert loc.layer_scores("gradient_norm")[1] == pytest.approx(s.G(1).norm().item(), rel=1e-5)
    assert loc.neuron_scores("gradient_norm")[1, 3] == pytest.approx(s.G(1)[3].norm().item(), rel=1e-5)


@pytest.mark.parametrize("family", sorted(DENSE))
def test_attributions_of_units_add_up_to_their_site_unless_a_norm_follows(family):
    lm = random_model(family)
    loc = localize(lm, PAIRS, ["attribution"], parts=BOTH, draws=0)
    for part in BOTH:
        of_units, of_sites = loc.neuron_scores("attribution", part).sum(1), loc.layer_scores("attribution", part)
        if lm.at(Site(0, part)).has_norm:  # which undoes a common scaling of all units
            assert np.abs(of_units).max() < 1e-2 * np.abs(loc.neuron_scores("attribution", part)).sum()
        else:
            np.testing.assert_allclose(of_units, of_sites, rtol=1e-3, atol=1e-5)


def test_equal_sets_have_no_contrast(tiny):
    loc = localize(tiny, ContrastSet(TEXTS, TEXTS), parts=BOTH)
    for score in loc.scores:
        for part in BOTH:
            assert np.abs(loc.layer_scores(score, part)).max() == pytest.approx(0, abs=1e-9)


def test_unknown_score(tiny):
    with pytest.raises(ToxlocError, match="Unknown score heat; choose from activation"):
        localize.__wrapped__(tiny, PAIRS, ["heat"])


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (("router",), "Unknown part router; choose from mlp, attention, mixer, expert, shared_expert"),
        ((), r"Unknown part \(none given\)"),
        (("expert", "mixer"), "random-gpt2 has no expert or mixer; its parts are mlp, attention"),
    ],
)
def test_unknown_parts(tiny, parts, words):
    with pytest.raises(ToxlocError, match=words):
        localize.__wrapped__(tiny, PAIRS, parts=parts)


def test_each_part_has_the_same_scores_with_and_without_the_other(tiny):
    scores = ("activation", "gradient_norm", "attribution", "auroc", "editability")
    both = localize(tiny, PAIRS, scores, parts=("attention", "mlp"), draws=0)
    assert both.parts == BOTH
    assert both.sites() == (Site(0), Site(1), Site(0, "attention"), Site(1, "attention"))
    for part in BOTH:
        alone = localize(tiny, PAIRS, scores, parts=(part,), draws=0)
        assert alone.parts == (part,)
        assert alone.sites() == both.sites(part) == tuple(tiny.sites(part))
        for score in scores:
            np.testing.assert_allclose(both.layer_scores(score, part), alone.layer_scores(score), rtol=1e-4, atol=1e-9)
            np.testing.assert_allclose(
                both.neuron_scores(score, part), alone.neuron_scores(score), rtol=1e-4, atol=1e-8
            )
        for site, sizes in alone.unit_sizes().items():
            np.testing.assert_allclose(both.unit_sizes()[site], sizes, rtol=1e-4)
    assert alone.layers is alone.by_part["attention"].layers  # the first and only part
    with pytest.raises(ToxlocError, match=r"'mlp' was not localized.* has attention"):
        alone.top_neurons("attribution", 1)


def test_the_adjusted_p_counts_all_sites_of_all_parts(tiny):
    """Westfall and Young's maxT is computed from the draws here; for MLPs alone it counts fewer sites."""
    both = localize(tiny, PAIRS, ["attribution", "activation"], parts=BOTH, draws=200, seed=3)
    s = collect_contrast(tiny, PAIRS, sites=tiny.sites())
    n = len(PAIRS.toxic), len(PAIRS.neutral)
    null = Weights.shuffled(*n, PAIRS.paired, 200, 3)
    for name, two_sided in (("attribution", True), ("activation", False)):
        scored = SCORES[name].formula(tiny, s, [null])
        mean, sd = scored.draws[0].mean(0), scored.draws[0].std(0)
        z, z_null = (scored.sites - mean) / sd, (scored.draws[0] - mean) / sd
        if two_sided:
            z, z_null = np.abs(z), np.abs(z_null)
        largest = z_null.max(1)
        for site, observed in zip(s.sites, z, strict=True):
            uncertainty = both.part_uncertainty(name, site.part)
            expected = (1 + sum(shuffled >= observed - 1e-9 for shuffled in largest)) / 201
            assert uncertainty.p_adjusted[site.layer] == pytest.approx(expected)
        alone = localize(tiny, PAIRS, [name], draws=200, seed=3).uncertainty[name]
        both_mlps = both.part_uncertainty(name, "mlp")
        np.testing.assert_allclose(alone.p, both_mlps.p)
        assert (alone.p_adjusted <= both_mlps.p_adjusted).all()


def test_statistics_decide_which_sites_are_scored(tiny):
    s = collect_contrast(tiny, PAIRS, sites=["1.attention", 1])
    loc = localize(tiny, PAIRS, ["attribution"], statistics=s, draws=0)
    assert loc.sites() == (Site(1), Site(1, "attention"))
    assert loc.top_layers("attribution", 1) == loc.top_layers("attribution", 1, "attention") == [1]
    assert set(loc.site_scores("attribution")) == {Site(1), Site(1, "attention")}


def test_scores_have_the_documented_shapes_on_the_built_in_model(lm, pairs):
    loc = localize(lm, pairs)
    assert loc.layer_scores("attribution").shape == (8,)
    assert loc.neuron_scores("activation").shape == (8, 1024)
    assert loc.neuron_scores("activation").dtype == np.float64


def test_the_activation_size_is_a_root_mean_square(tiny):
    """The size of a head is the root mean square of the norm of its z."""
    loc = localize(tiny, PAIRS, ["activation"], parts=BOTH, draws=0)
    for site in tiny.sites():
        keys = rows_of(tiny, [*PAIRS.toxic, *PAIRS.neutral], site)[0].numpy()
        size = keys if site.part == "mlp" else norm_of_heads(keys, 2)
        np.testing.assert_allclose(loc.unit_sizes()[site], np.sqrt((size**2).mean(0)), rtol=1e-4)
    np.testing.assert_array_equal(loc.activation_size[1], loc.unit_sizes()[1])


def test_without_draws_there_is_no_uncertainty(tiny):
    assert localize(tiny, PAIRS, draws=0).uncertainty == {}
    with pytest.raises(ToxlocError, match="draws=-1"):
        localize(tiny, PAIRS, draws=-1)


def test_the_same_seed_gives_the_same_intervals_and_draws_need_no_pass(tiny, monkeypatch):
    passes = []
    monkeypatch.setattr(
        "toxloc.localization.text_statistics.batches",
        lambda *args, **kwargs: passes.append(1) or batches(*args, **kwargs),
    )
    first, second = (localize(tiny, PAIRS, draws=20, seed=0).uncertainty["attribution"] for _ in range(2))
    np.testing.assert_array_equal(first.low, second.low)
    assert len(passes) == 4  # a toxic and a neutral pass per call, for any number of draws


def test_a_real_contrast_is_significant_and_random_labels_are_not(lm, pairs):
    """Real labels lie far outside their null distribution; random labels do not."""
    real = localize(lm, pairs).uncertainty
    assert real["activation"].p_adjusted.max() < 0.01
    rng = np.random.default_rng(3)
    swap = rng.random(len(pairs.toxic)) < 0.5
    sides = [
        [b if s else a for a, b, s in zip(x, y, swap, strict=True)]
        for x, y in ((pairs.toxic, pairs.neutral), (pairs.neutral, pairs.toxic))
    ]
    none = localize(lm, ContrastSet(*sides, paired=True)).uncertainty
    for score in ("activation", "gradient_norm", "attribution"):
        assert none[score].p_adjusted.min() > 0.01, score


def test_counterfactual_has_uncertainty_by_site_and_survives_saving(tiny, tmp_path):
    pairs = prefixes_by_hand.PAIRS
    loc = localize(tiny, pairs, ("counterfactual", "attribution"), parts=BOTH, draws=100)
    for part in BOTH:
        uncertainty = loc.part_uncertainty("counterfactual", part)
        scores = loc.layer_scores("counterfactual", part)
        assert uncertainty.p_adjusted.shape == scores.shape == (2,)
        assert ((uncertainty.p_adjusted >= uncertainty.p) & (uncertainty.p > 0)).all()
        np.testing.assert_allclose(uncertainty.null_mean, 0, atol=1e-9)
        np.testing.assert_allclose(loc.neuron_scores("counterfactual", part).sum(1), scores, rtol=1e-3, atol=1e-5)
    loc.save(tmp_path / "loc")
    again = Localization.load(tmp_path / "loc")
    assert again.about["n_pairs_compared"] == len(prefixes_by_hand.USABLE)
    np.testing.assert_array_equal(again.layer_scores("counterfactual"), loc.layer_scores("counterfactual"))
    np.testing.assert_array_equal(
        again.uncertainty["counterfactual"].p_adjusted, loc.uncertainty["counterfactual"].p_adjusted
    )
    assert loc.heatmap().data
    alone = localize(tiny, pairs, ("counterfactual",), draws=100)
    np.testing.assert_allclose(alone.layer_scores("counterfactual"), loc.layer_scores("counterfactual"), rtol=1e-4)


def test_counterfactual_is_the_same_with_sites_in_groups(tiny):
    whole, groups = (
        localize(tiny, prefixes_by_hand.PAIRS, ("counterfactual", "attribution"), memory=memory, draws=50)
        for memory in (None, 1)
    )
    np.testing.assert_allclose(
        whole.layer_scores("counterfactual"), groups.layer_scores("counterfactual"), rtol=1e-4, atol=1e-7
    )
    for name in ("p_adjusted", "low"):
        a, b = (getattr(loc.uncertainty["counterfactual"], name) for loc in (whole, groups))
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def test_counterfactual_needs_pairs(tiny):
    pairs = prefixes_by_hand.PAIRS
    with pytest.raises(ToxlocError, match="is not paired"):
        localize(tiny, ContrastSet(pairs.toxic, pairs.neutral), ("counterfactual",))


def test_the_p_value_of_counterfactual_is_uniform_if_the_sides_are_exchangeable(lm, pairs):
    """Swapping the texts of random pairs gives p-values that are not small; the real order may."""
    rng = np.random.default_rng(5)
    few = pairs.limited(40)
    ps = []
    for _ in range(4):
        swap = rng.random(len(few.toxic)) < 0.5
        sides = [
            [b if s else a for a, b, s in zip(x, y, swap, strict=True)]
            for x, y in ((few.toxic, few.neutral), (few.neutral, few.toxic))
        ]
        loc = localize(lm, ContrastSet(*sides, paired=True), ("counterfactual",), draws=200)
        ps.append(loc.uncertainty["counterfactual"].p_adjusted.min())
    assert np.median(ps) > 0.05


def test_statistics_without_differences_are_a_sentence(tiny):
    statistics = collect_contrast(tiny, prefixes_by_hand.PAIRS)
    with pytest.raises(ToxlocError, match=r"collect_contrast\(differences=True\)"):
        localize(tiny, prefixes_by_hand.PAIRS, ("counterfactual",), statistics=statistics)
    statistics = collect_contrast(tiny, prefixes_by_hand.PAIRS, differences=True)
    loc, alone = (
        localize(tiny, prefixes_by_hand.PAIRS, ("counterfactual",), statistics=given, draws=50)
        for given in (statistics, None)
    )
    np.testing.assert_allclose(
        loc.uncertainty["counterfactual"].z, alone.uncertainty["counterfactual"].z, rtol=1e-3, atol=1e-4
    )
