import numpy as np
import pytest
import torch

from tests.conftest import TEXTS, bits, random_model, same_bits
from toxloc import NeutralText, ToxlocError, load_intervention
from toxloc.evaluation.cost.perplexity import mean_nll
from toxloc.interventions.methods import value_vector as value_vectors
from toxloc.interventions.methods.value_vector import ValueVector

from .test_steering import FAMILIES, PAIRS, after_block, logits, means, n_hooks

UNIT = torch.eye(16)[3]


def logistic_direction(toxic, neutral, steps=50):
    """Newton's method on sum log(1 + exp(-y (w x + b))) + |w|²/2, on centred rows divided by their common size."""
    X = np.concatenate([toxic, neutral])
    X = X - X.mean(0)
    X = np.c_[X / np.sqrt((X**2).mean()), np.ones(len(X))]
    y = np.array([1] * len(toxic) + [0] * len(neutral))
    penalty = np.diag([1.0] * (X.shape[1] - 1) + [0.0])
    w = np.zeros(X.shape[1])
    for _ in range(steps):
        p = 1 / (1 + np.exp(-X @ w))
        w = w - np.linalg.solve(X.T @ (X * (p * (1 - p))[:, None]) + penalty, X.T @ (p - y) + penalty @ w)
    return w[:-1] / np.linalg.norm(w[:-1])


def with_random_gains(family):
    """Return a model, and what the rows of each layer's W_out add to the residual stream."""
    lm = random_model(family)
    written = [lm.W_out(i).double().numpy().copy() for i in range(lm.n_layers)]
    if family == "gemma2":
        for i, rows in enumerate(written):
            gain = lm.contribution(i).weight
            torch.nn.init.uniform_(gain, -0.9, 3)
            rows *= 1 + gain.double().numpy()
    return lm, written


@pytest.mark.parametrize("family", FAMILIES)
def test_the_probe_is_the_logistic_regression_at_the_block_before_the_last(family):
    lm = random_model(family)
    vector = ValueVector.fit(lm, PAIRS, strength=2.0)
    assert (vector.layer, vector.strength, vector.source) == (0, 2.0, "probe")
    expected = logistic_direction(means(lm, PAIRS.toxic, 0), means(lm, PAIRS.neutral, 0))
    np.testing.assert_allclose(vector.direction, expected, atol=1e-3)
    assert vector.direction.norm() == pytest.approx(1, abs=1e-6)
    assert (means(lm, PAIRS.toxic, 0) @ expected).min() > (means(lm, PAIRS.neutral, 0) @ expected).max()


def test_it_acts_before_the_last_block_of_a_deeper_model():
    assert ValueVector.fit(random_model("gpt2", n_layer=4), PAIRS, strength=1.0).layer == 2


def by_similarity(written, probe):
    """Return (cosine, layer, neuron, row) of all rows, in order of decreasing similarity to the probe."""
    rows = [
        (float(row @ probe / np.linalg.norm(row)), layer, j, row)
        for layer, rows in enumerate(written)
        for j, row in enumerate(rows)
    ]
    return sorted(rows, key=lambda entry: -entry[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_row_is_the_closest_of_all_layers_by_a_plain_loop(family):
    lm, written = with_random_gains(family)
    probe = ValueVector.fit(lm, PAIRS, strength=1.0).direction.double().numpy()
    vector = ValueVector.fit(lm, PAIRS, source="row", strength=1.0)
    cosine, layer, j, row = by_similarity(written, probe)[0]
    np.testing.assert_allclose(vector.direction, row / np.linalg.norm(row), rtol=1e-5, atol=1e-6)
    assert vector.record["closest_neuron"] == [layer, j]
    assert vector.record["closest_cosine"] == pytest.approx(cosine, rel=1e-5)
    assert vector.record["cosine_to_probe"] == pytest.approx(cosine, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stacked", [10, 512])
def test_the_singular_vector_of_the_closest_rows_agrees_with_the_probe(family, stacked, monkeypatch):
    """The models have more than 10 rows and fewer than 512."""
    monkeypatch.setattr(value_vectors, "STACKED", stacked)
    lm, written = with_random_gains(family)
    probe = ValueVector.fit(lm, PAIRS, strength=1.0).direction.double().numpy()
    vector = ValueVector.fit(lm, PAIRS, source="svd", strength=1.0)
    rows = np.stack([row for *_, row in by_similarity(written, probe)[:stacked]])
    top = np.linalg.eigh(rows.T @ rows)[1][:, -1]
    np.testing.assert_allclose(vector.direction, top * np.sign(top @ probe), atol=1e-5)
    assert vector.record["n_rows"] == len(rows) == min(stacked, lm.n_layers * lm.d_mlp)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_subtracted_at_every_position_on_both_trees(family):
    lm = random_model(family)
    before, untouched, hooks = after_block(lm, TEXTS[0], 0), logits(lm)[0], n_hooks(lm)
    with ValueVector(UNIT, layer=0, strength=2.5).applied(lm):
        torch.testing.assert_close(after_block(lm, TEXTS[0], 0), before - 2.5 * UNIT)
        hooked, plain = logits(lm)
    torch.testing.assert_close(hooked, plain, rtol=1e-4, atol=1e-4)
    assert (hooked - untouched).abs().max() > 1e-2
    assert n_hooks(lm) == hooks


@pytest.mark.parametrize(("source", "strength"), [("probe", 50), ("row", 20), ("svd", 100)])
def test_a_strength_is_the_papers_alpha_and_needs_no_budget(tiny, source, strength):
    vector = ValueVector.fit(tiny, PAIRS, source=source, strength=strength)
    assert vector.strength == vector.record["strength"] == strength
    assert "budget" not in vector.record


def test_fit_keeps_the_budget_and_makes_toxic_text_less_likely(lm, pairs, neutral):
    before = bits(lm)
    vector = ValueVector.fit(lm, pairs, source="svd", budget=0.02, neutral=neutral)
    assert same_bits(before, lm)
    assert vector.layer == lm.n_layers - 2
    contrast = mean_nll(lm, pairs.toxic) - mean_nll(lm, pairs.neutral)
    base = mean_nll(lm, neutral.tune)
    with vector.applied(lm):
        rise = np.expm1(mean_nll(lm, neutral.tune) - base)
        assert mean_nll(lm, pairs.toxic) - mean_nll(lm, pairs.neutral) > contrast + 0.01
    assert 0.015 <= rise <= 0.02
    assert vector.record["strength"] == vector.strength
    assert vector.fitted_on["fingerprint"] == lm.fingerprint


def test_save_and_load(tiny, tmp_path):
    vector = ValueVector.fit(
        tiny, PAIRS, source="row", budget=0.5, neutral=NeutralText(TEXTS[:1], TEXTS[2:], TEXTS[:1])
    )
    vector.save(tmp_path / "v")
    again = load_intervention(tmp_path / "v")
    assert isinstance(again, ValueVector)
    assert again.describe() == vector.describe()
    assert torch.equal(again.direction, vector.direction)
    assert not again.in_weights


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(source="dream"), "source='dream': it must be 'probe', 'row' or 'svd'"),
        (dict(strength=float("inf")), "strength=inf: it must be a finite number"),
        (dict(alpha=20.0), "There is no setting 'alpha'"),
        (dict(budget=0.0), "not 0.0"),
    ],
)
def test_bad_arguments_of_fit(tiny, arguments, words):
    with pytest.raises(ToxlocError, match=words):
        ValueVector.fit(tiny, PAIRS, **arguments)


def test_models_and_directions_that_are_refused(tiny):
    with pytest.raises(ToxlocError, match="has a single block"):
        ValueVector.fit(random_model("gpt2", n_layer=1), PAIRS)
    with pytest.raises(ToxlocError, match="length 1, not 4; divide"):
        ValueVector(torch.ones(16), 0, 1.0)
    with pytest.raises(ToxlocError, match="length 1, not nan"):
        ValueVector(torch.full((16,), torch.nan), 0, 1.0)
    with pytest.raises(ToxlocError, match="is for d_model=2"):
        ValueVector(torch.tensor([0.6, 0.8]), 0, 1.0).apply(tiny)
    with pytest.raises(ToxlocError, match="no layer 2 "):
        ValueVector(UNIT, 2, 1.0).apply(tiny)
    assert tiny.interventions == []
