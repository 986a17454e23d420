import numpy as np
import pytest

from tests.conftest import TEXTS
from toxloc import ContrastSet, ToxlocError, localize
from toxloc.causal.curve import NEAREST, knockout_curve, matched, matched_order
from toxloc.causal.knockout import KnockoutTest, knockout
from toxloc.localization.score_table import SCORES
from toxloc.models.sites import BySite, Site

PAIRS = ContrastSet(TEXTS[:2], TEXTS[2:4], paired=True)


def test_controls_are_other_neurons_of_the_same_layer_with_a_near_activation_size():
    rng = np.random.default_rng(0)
    size = BySite({Site(layer): np.exp(rng.standard_normal(400)) for layer in (0, 1)})
    chosen = [(Site(0), 5), (Site(1), 7), (Site(1), 8)]
    seen = set()
    for _ in range(20):
        drawn = matched(chosen, size, rng)
        seen |= set(drawn)
        assert [site for site, _ in drawn] == [Site(0), Site(1), Site(1)]
        assert len(set(drawn)) == 3
        assert not set(drawn) & set(chosen)
        for (site, j), (_, k) in zip(chosen, drawn, strict=True):
            nearer = np.abs(np.log(size[site]) - np.log(size[site][j])) < abs(np.log(size[site][k] / size[site][j]))
            assert nearer.sum() <= NEAREST + 3
    assert len(seen) > 10  # drawn at random among the nearest
    with pytest.raises(ToxlocError, match=r"layer 0 .* 2 chosen units"):
        matched([(Site(0), 0), (Site(0), 1)], BySite({Site(0): np.ones(3)}), rng)


def test_heads_are_matched_with_heads_of_the_same_attention():
    sizes = BySite({Site(0, "attention"): np.array([1.0, 9.0, 1.1, 8.0])})
    drawn = matched([(Site(0, "attention"), 0), (Site(0, "attention"), 1)], sizes, np.random.default_rng(0))
    assert {site for site, _ in drawn} == {Site(0, "attention")}
    assert {unit for _, unit in drawn} == {2, 3}
    with pytest.raises(ToxlocError, match=r"layer 0, attention .* 3 chosen units"):
        matched([(Site(0, "attention"), i) for i in range(3)], sizes, np.random.default_rng(0))


def test_a_matched_order_exchanges_units_of_a_site_with_similar_activation_sizes():
    rng = np.random.default_rng(0)
    sizes = [np.exp(rng.standard_normal(n)) for n in (100, 40, 3)]
    orders = np.stack([matched_order(sizes, rng) for _ in range(200)])
    assert (np.sort(orders, axis=1) == np.arange(143)).all()
    site = np.repeat([0, 1, 2], [100, 40, 3])
    assert (site[orders] == site).all()
    for begin, size in zip((0, 100, 140), sizes, strict=True):
        rank = np.argsort(np.argsort(size))
        distance = abs(rank[orders[:, begin : begin + len(size)] - begin] - rank)
        assert distance.max() == min(NEAREST, len(size)) - 1 or distance.max() >= NEAREST // 2
        assert distance.max() < NEAREST
    assert (orders != np.arange(143)).mean() > 0.8
    assert len({tuple(order) for order in orders}) == 200


def test_a_curve_removes_units_in_the_order_of_the_score_and_random_controls(tiny):
    loc = localize(tiny, PAIRS)
    curve = knockout_curve(KnockoutTest(tiny, PAIRS), loc, "attribution", [2, 5], controls=2)
    order = loc.top_neurons("attribution", 5)
    assert [set(k.neurons) for k in curve.ordered] == [set(order[:2]), set(order)]
    assert curve.ordered[1] == knockout(tiny, PAIRS, order)
    assert [[len(k.neurons) for k in draws] for draws in curve.controls] == [[2, 2], [5, 5]]
    assert curve.to_dict()["counts"] == [2, 5]
    assert curve.score_title == SCORES["attribution"].title


def test_a_curve_of_heads(tiny):
    loc = localize(tiny, PAIRS, parts=("mlp", "attention"), draws=0)
    curve = knockout_curve(KnockoutTest(tiny, PAIRS), loc, "attribution", [1], controls=2, part="attention")
    ((site, head),) = loc.top_units("attribution", 1, "attention")
    assert curve.ordered[0] == knockout(tiny, PAIRS, [(site, head)])
    assert [k.units for k in curve.controls[0]] == [((site, 1 - head),)] * 2  # the only other head of the attention
    assert curve.to_dict()["ordered"][0]["effect"] == curve.ordered[0].effect


def test_the_seed_determines_the_controls(tiny):
    loc = localize(tiny, PAIRS, draws=0)
    test = KnockoutTest(tiny, PAIRS)
    curves = [knockout_curve(test, loc, "attribution", [3], controls=1, seed=seed) for seed in (0, 0, 1)]
    assert curves[0] == curves[1]
    assert curves[0].controls != curves[2].controls
    assert curves[0].ordered == curves[2].ordered


def test_too_many_units_and_unknown_scores_are_named(tiny):
    loc = localize(tiny, PAIRS, ["attribution"], draws=0)
    with pytest.raises(ToxlocError, match="129"):
        knockout_curve(KnockoutTest(tiny, PAIRS), loc, "attribution", [129])
    with pytest.raises(ToxlocError, match="activation"):
        knockout_curve(KnockoutTest(tiny, PAIRS), loc, "activation", [2])
