import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from tests.conftest import TEXTS, random_model
from toxloc import ContrastSet, ToxlocError, collect_contrast
from toxloc.interventions.methods.trne import TRNE
from toxloc.localization.linalg import factor, steepest, steepest_at_cost
from toxloc.localization.scores import RIDGE, SCORES, editability
from toxloc.localization.statistics import collect
from toxloc.localization.uncertainty import Weights

TOXIC, NEUTRAL = TEXTS[:3], TEXTS[2:]
RESAMPLED = ["combined", "activation", "gradient_norm", "attribution", "auroc"]


@pytest.fixture(scope="module")
def model():
    """d_mlp is 48 and d_model 16, so that gradients are sketched without loss."""
    return random_model("llama")


@pytest.fixture(scope="module")
def found(model):
    return collect_contrast(model, ContrastSet(TOXIC, NEUTRAL), peaks=True, curvature=True, reliance=True)


def weights(toxic, neutral, null, s):
    """Weights of texts, on the groups they were dealt to."""
    sides = []
    for w in (toxic, neutral):
        row = np.zeros(6)
        row[s.toxic.contributions.group] = w[:3]
        row[3 + s.neutral.contributions.group] = w[3:]
        sides.append(row[None])
    return Weights(*sides, null=null)


@pytest.mark.parametrize("name", RESAMPLED)
def test_the_draw_that_changes_nothing_gives_the_score(name, model, found):
    scored = SCORES[name].formula(model, found, [Weights.observed(3, 3)])
    np.testing.assert_allclose(scored.draws[0][0], scored.layers, rtol=1e-3)


@pytest.mark.parametrize("name", ["activation", "gradient_norm", "attribution"])
def test_a_bootstrap_draw_equals_a_pass_over_the_repeated_texts(name, model, found):
    w = weights([2, 0, 1, 0, 0, 0], [0, 0, 0, 0, 3, 0], False, found)
    drawn = SCORES[name].formula(model, found, [w]).draws[0][0]
    again = ContrastSet([TOXIC[0], TOXIC[0], TOXIC[2]], [NEUTRAL[1]] * 3)
    truth = SCORES[name].formula(model, collect_contrast(model, again), []).layers
    np.testing.assert_allclose(drawn, truth, rtol=2e-3)


@pytest.mark.parametrize("name", RESAMPLED)
def test_a_shuffling_equals_a_pass_with_other_labels(name, model, found):
    w = weights([1, 0, 0, 1, 1, 0], [0, 1, 1, 0, 0, 1], True, found)
    drawn = SCORES[name].formula(model, found, [w]).draws[0][0]
    other = ContrastSet([TOXIC[0], NEUTRAL[0], NEUTRAL[1]], [TOXIC[1], TOXIC[2], NEUTRAL[2]])
    truth = SCORES[name].formula(model, collect_contrast(model, other, peaks=True, reliance=True), []).layers
    np.testing.assert_allclose(drawn, truth, rtol=2e-3)


def test_combined_by_hand(model, found):
    """Reliance token by token: the mean square of a_j times the mean square of w_j . δ, toxic side."""
    plain, both = (SCORES[name].formula(model, found, []) for name in ("attribution", "combined"))
    np.testing.assert_array_equal(both.layers, plain.layers)
    positive = [max(0.0, value) for value in plain.layers]
    for layer in range(model.n_layers):
        W, S = model.W_out(layer).double(), collect(model, TOXIC, curvature=True).S[layer].double()
        squares, count = 0.0, 0
        for text in TOXIC:
            ids = torch.tensor([[0, *model.tokenizer(text)["input_ids"]]])
            _, cache = model.hooked.run_with_cache(ids, attention_mask=torch.ones_like(ids))
            squares = squares + (cache[model.neuron_hook(layer)][0, 1:].double() ** 2).sum(0)
            count += ids.shape[1] - 1
        reliance = torch.stack([squares[j] / count * (W[j] @ S @ W[j]) for j in range(model.d_mlp)]).sqrt().numpy()
        a = plain.neurons[layer]
        truth = (a / a.std() + reliance / reliance.std()) * positive[layer] / sum(positive)
        np.testing.assert_allclose(both.neurons[layer], truth, rtol=1e-3, atol=1e-6)


def test_auroc_is_that_of_scikit_learn(lm, pairs):
    s = collect_contrast(lm, pairs, gradients=False, peaks=True)
    scored = SCORES["auroc"].formula(lm, s, [])
    for layer, neuron in ((0, 3), (5, 1000)):
        x, y = (side.contributions.peaks.layer(layer)[0][:, neuron] for side in (s.toxic, s.neutral))
        truth = roc_auc_score(np.r_[np.ones(len(x)), np.zeros(len(y))], np.r_[x, y])
        assert scored.neurons[layer, neuron] == pytest.approx(truth)
    np.testing.assert_array_equal(scored.layers, scored.neurons.max(1))


def test_bootstrapped_auroc_is_near_that_of_the_resampled_texts(lm, pairs):
    """Placements are of first order: the difference is small against the spread of the draws."""
    s = collect_contrast(lm, pairs, gradients=False, peaks=True)
    n = len(s.toxic.contributions.tokens)
    w = Weights.bootstrap(n, n, True, draws=30)
    (x, i), (y, j) = (side.contributions.peaks.layer(2) for side in (s.toxic, s.neutral))
    x, y = x[np.argsort(s.toxic.contributions.group[i])], y[np.argsort(s.neutral.contributions.group[j])]
    drawn = SCORES["auroc"].formula(lm, s, [w]).draws[0][:, 2]
    exact = []
    for row in w.toxic[:, :n].astype(int):
        a, b = np.repeat(x, row, axis=0), np.repeat(y, row, axis=0)
        exact.append(max(roc_auc_score(np.r_[np.ones(n), np.zeros(n)], np.r_[a[:, k], b[:, k]])
                         for k in np.argsort(-SCORES["auroc"].formula(lm, s, []).neurons[2])[:12]))
    assert np.corrcoef(drawn, exact)[0, 1] > 0.8
    assert np.mean(drawn) == pytest.approx(np.mean(exact), abs=0.5 * np.std(exact) + 0.01)


def test_the_calibrated_norm_is_one_on_average_under_its_null(model, found):
    null = Weights.shuffled(3, 3, False, 50)
    scored = SCORES["gradient_calibrated"].formula(model, found, [null])
    np.testing.assert_allclose(scored.draws[0].mean(0), 1)
    raw = SCORES["gradient_norm"].formula(model, found, [null])
    np.testing.assert_allclose(scored.layers, raw.layers / raw.draws[0].mean(0))


def test_editability_is_the_gain_that_trne_reports(model, found):
    edit = TRNE.fit(model, ContrastSet(TOXIC, NEUTRAL), norm=0.01, ridge=RIDGE, statistics=found)
    gains = list(edit.record["editability"].values())
    np.testing.assert_allclose(editability(model, found, []).layers, gains, rtol=1e-6)


def test_a_neurons_editability_is_the_best_gain_of_its_row_alone(model, found):
    """Maximise <g, w> with C̃_jj wᵀ S̃ w = 1: Lagrange gives sqrt(gᵀ S̃⁻¹ g / C̃_jj)."""
    layer, j = 1, 7
    C, S = found.C[layer].double(), found.S[layer].double()
    ridged_C = C[j, j] + RIDGE * C.diagonal().mean()
    ridged_S = S + RIDGE * S.diagonal().mean() * torch.eye(len(S))
    g = found.G(layer)[j].double()
    best = (g @ torch.linalg.solve(ridged_S, g) / ridged_C).sqrt()
    assert editability(model, found, []).neurons[layer, j] == pytest.approx(best.item(), rel=1e-4)


def test_what_a_score_lacks_is_said(model):
    s = collect_contrast(model, ContrastSet(TOXIC, NEUTRAL))
    with pytest.raises(ToxlocError, match="peaks=True"):
        SCORES["auroc"].formula(model, s, [])
    with pytest.raises(ToxlocError, match="reliance=True"):
        SCORES["combined"].formula(model, s, [])
    with pytest.raises(ToxlocError, match="curvature=True"):
        SCORES["editability"].formula(model, s, [])


def test_steepest_is_the_leading_singular_triple():
    G = torch.randn(9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma, u, v = steepest(G)
    U, S, Vt = torch.linalg.svd(G)
    assert sigma == pytest.approx(S[0].item())
    torch.testing.assert_close(torch.outer(u, v), torch.outer(U[:, 0], Vt[0]))
    assert steepest(torch.zeros(4, 3))[0] == 0


def inverse_root(M):
    values, vectors = torch.linalg.eigh(M)
    return vectors @ torch.diag(values.rsqrt()) @ vectors.T


def test_steepest_at_cost_is_the_singular_triple_between_inverse_roots():
    generator = torch.Generator().manual_seed(1)
    G, A, B = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((7, 4), (20, 7), (9, 4)))
    C, S = A.T @ A, B.T @ B
    sigma, x, y = steepest_at_cost(G, C, S, 0.5)
    C, S = (M + 0.5 * M.diagonal().mean() * torch.eye(len(M)) for M in (C, S))
    U, singular, Vt = torch.linalg.svd(inverse_root(C) @ G @ inverse_root(S))
    assert sigma == pytest.approx(singular[0].item())
    truth = torch.outer(inverse_root(C) @ U[:, 0], inverse_root(S) @ Vt[0])
    torch.testing.assert_close(torch.outer(x, y), truth)
    assert (x @ C @ x * (y @ S @ y)).item() == pytest.approx(1)
    assert x @ G @ y == pytest.approx(sigma)


def test_a_cholesky_factor_of_the_ridged_matrix():
    M = torch.diag(torch.tensor([4.0, 0.0, 2.0]))  # mean eigenvalue 2
    torch.testing.assert_close(factor(M, 0.5), torch.diag(torch.tensor([5.0, 1.0, 3.0]).double().sqrt()))
    assert factor(torch.zeros(2, 2), 1.0).isfinite().all()
