import numpy as np
import pytest
from scipy.stats import spearmanr

from tests.conftest import TEXTS, random_model
from toxloc import ContrastSet, Localization, ToxlocError, localize
from toxloc.causal.knockout import KnockoutTest, knockout
from toxloc.causal.proof import causal_proof
from toxloc.localization.result import PartScores
from toxloc.models.sites import Site

PAIRS = ContrastSet(TEXTS[:2], TEXTS[2:4], paired=True)


def test_rank_correlations_of_tied_and_of_constant_scores(tiny):
    """With ties the correlation is that of scipy; for a constant score it is 0."""
    units = {"tied": np.random.default_rng(0).integers(0, 5, (2, 64)).astype(float), "constant": np.ones((2, 64))}
    layers = {"tied": np.array([0.0, 1.0]), "constant": np.ones(2)}
    loc = Localization({"mlp": PartScores((Site(0), Site(1)), layers, units, np.ones((2, 64)))}, {})
    proof = causal_proof(KnockoutTest(tiny, PAIRS), loc, n_neurons=20)
    tied, constant = (
        next(c for c in proof.correlations if (c.score, c.parts) == (name, "neurons")) for name in ("tied", "constant")
    )
    scores = [units["tied"][k.neurons[0]] for k in proof.neurons]
    assert len(set(scores)) < len(scores) == 20
    assert tied.spearman == pytest.approx(spearmanr(scores, [k.effect for k in proof.neurons]).statistic)
    assert (constant.spearman, constant.ci) == (0, (0, 0))


def test_a_proof_correlates_every_score_with_the_effects(tiny):
    loc = localize(tiny, PAIRS)
    proof = causal_proof(KnockoutTest(tiny, PAIRS), loc, n_neurons=12)
    assert [k.layers for k in proof.layers] == [(0,), (1,)]
    assert proof.layers[1] == knockout(tiny, PAIRS, [1])
    places = [k.neurons[0] for k in proof.neurons]
    assert len(set(places)) == 12
    assert {(c.score, c.parts, c.n) for c in proof.correlations} == {
        (score, parts, n) for score in loc.scores for parts, n in (("layers", 2), ("neurons", 12))
    }
    correlation = next(c for c in proof.correlations if (c.score, c.parts) == ("attribution", "neurons"))
    scores = np.array([loc.neuron_scores("attribution")[place] for place in places])
    effects = np.array([k.effect for k in proof.neurons])
    assert correlation.spearman == pytest.approx(spearmanr(scores, effects).statistic)
    # A bootstrap over neurons with other draws than those of toxloc.
    draws = np.random.default_rng(1).integers(0, 12, (2000, 12))
    low, high = np.nanpercentile([spearmanr(scores[i], effects[i]).statistic for i in draws], [2.5, 97.5])
    assert correlation.ci == pytest.approx((low, high), abs=0.1)


def test_half_of_the_neurons_are_drawn_from_the_highest_of_each_score(tiny):
    loc = localize(tiny, PAIRS, ["attribution"], draws=0)
    top = set(loc.top_neurons("attribution", 8))
    proof = causal_proof(KnockoutTest(tiny, PAIRS), loc, n_neurons=8)
    assert len(top & {k.neurons[0] for k in proof.neurons}) >= 4
    assert causal_proof(KnockoutTest(tiny, PAIRS), loc, n_neurons=0).neurons == ()


def test_a_proof_of_attentions_and_heads(tiny):
    loc = localize(tiny, PAIRS, parts=("mlp", "attention"), draws=0)
    proof = causal_proof(KnockoutTest(tiny, PAIRS), loc, n_neurons=99, part="attention")
    assert [k.sites for k in proof.layers] == [(Site(0, "attention"),), (Site(1, "attention"),)]
    assert {k.units[0] for k in proof.neurons} == {
        (Site(layer, "attention"), head) for layer in (0, 1) for head in (0, 1)
    }
    for k in proof.neurons:
        assert k == knockout(tiny, PAIRS, k.units)
    correlation = next(c for c in proof.correlations if (c.score, c.parts) == ("attribution", "neurons"))
    scores = [loc.neuron_scores("attribution", "attention")[k.neurons[0]] for k in proof.neurons]
    assert correlation.spearman == pytest.approx(spearmanr(scores, [k.effect for k in proof.neurons]).statistic)


def test_a_proof_of_all_parts_removes_every_site_and_single_units_of_the_first_part(tiny):
    loc = localize(tiny, PAIRS, parts=("attention", "mlp"), draws=0)
    proof = causal_proof(KnockoutTest(tiny, PAIRS), loc, n_neurons=6)
    sites = [Site(0), Site(1), Site(0, "attention"), Site(1, "attention")]
    assert [k.sites for k in proof.layers] == [(site,) for site in sites]
    assert proof.layers[3] == knockout(tiny, PAIRS, [Site(1, "attention")])
    assert {k.units[0][0].part for k in proof.neurons} == {"mlp"}
    correlation = next(c for c in proof.correlations if (c.score, c.parts) == ("attribution", "sites"))
    scores = [loc.site_scores("attribution")[site] for site in sites]
    assert correlation.n == 4
    assert correlation.spearman == pytest.approx(spearmanr(scores, [k.effect for k in proof.layers]).statistic)
    assert {c.parts for c in proof.correlations} == {"sites", "neurons"}


def test_a_localization_of_another_model_is_an_error(tiny):
    loc = localize(random_model("gpt2", n_layer=3), PAIRS, ["attribution"], draws=0)
    with pytest.raises(ToxlocError, match=r"of random-gpt2, .* 3 layers of 64 neurons; random-gpt2 has 2 layers of 64"):
        causal_proof(KnockoutTest(tiny, PAIRS), loc)
