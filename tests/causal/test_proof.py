import numpy as np
import pytest
from scipy.stats import spearmanr

from tests.conftest import TEXTS, random_model
from toxloc import ContrastSet, ToxlocError, localize
from toxloc.causal.knockout import KnockoutTest, knockout
from toxloc.causal.proof import _spearman, causal_proof
from toxloc.models.sites import Site

PAIRS = ContrastSet(TEXTS[:2], TEXTS[2:4], paired=True)


def test_rank_correlation_is_that_of_scipy():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, (3, 20)).astype(float), rng.standard_normal((3, 20))
    np.testing.assert_allclose(_spearman(x, y), [spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)])
    assert _spearman(np.ones((1, 4)), y[:1, :4])[0] == 0


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
    one = next(c for c in proof.correlations if (c.score, c.parts) == ("attribution", "neurons"))
    scores = np.array([loc.neuron_scores("attribution")[place] for place in places])
    effects = np.array([k.effect for k in proof.neurons])
    assert one.spearman == pytest.approx(spearmanr(scores, effects).statistic)
    draws = np.random.default_rng(1).integers(0, 12, (2000, 12))  # a bootstrap over neurons, with other draws
    low, high = np.nanpercentile([spearmanr(scores[i], effects[i]).statistic for i in draws], [2.5, 97.5])
    assert one.ci == pytest.approx((low, high), abs=0.1)


def test_half_of_the_neurons_come_from_the_tops_of_the_scores(tiny):
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
    one = next(c for c in proof.correlations if (c.score, c.parts) == ("attribution", "neurons"))
    scores = [loc.neuron_scores("attribution", "attention")[k.neurons[0]] for k in proof.neurons]
    assert one.spearman == pytest.approx(spearmanr(scores, [k.effect for k in proof.neurons]).statistic)


def test_another_models_localization_is_refused(tiny):
    loc = localize(random_model("gpt2", n_layer=3), PAIRS, ["attribution"], draws=0)
    with pytest.raises(ToxlocError, match="of random-gpt2, with 3 layers of 64 neurons; random-gpt2 has 2 of 64"):
        causal_proof(KnockoutTest(tiny, PAIRS), loc)
