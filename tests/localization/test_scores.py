import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from tests.conftest import TEXTS, random_model
from toxloc import ContrastSet, ToxlocError, collect_contrast
from toxloc.interventions.methods.trne import TRNE
from toxloc.localization.linalg import factor, steepest, steepest_at_cost
from toxloc.localization.scores import RIDGE, SCORES, editability, removal_costs
from toxloc.localization.uncertainty import Weights
from toxloc.models.sites import BySite, Site

from .by_hand import norm_of_heads, rows_of, statistics_of

TOXIC, NEUTRAL = TEXTS[:3], TEXTS[2:]
PAIRS = ContrastSet(TOXIC, NEUTRAL)
RESAMPLED = ["combined", "activation", "gradient_norm", "attribution", "auroc"]


@pytest.fixture(scope="module")
def model():
    """d_mlp is 48 and d_model 16, so that gradients are sketched without loss."""
    return random_model("llama")


@pytest.fixture(scope="module")
def found(model):
    """The statistics of all MLPs and attentions, in one pass."""
    return collect_contrast(model, PAIRS, peaks=True, curvature=True, reliance=True, sites=model.sites())


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
    np.testing.assert_allclose(scored.draws[0][0], scored.sites, rtol=1e-3)


@pytest.mark.parametrize("name", ["activation", "gradient_norm", "attribution"])
def test_a_bootstrap_draw_equals_a_pass_over_the_repeated_texts(name, model, found):
    w = weights([2, 0, 1, 0, 0, 0], [0, 0, 0, 0, 3, 0], False, found)
    drawn = SCORES[name].formula(model, found, [w]).draws[0][0]
    again = ContrastSet([TOXIC[0], TOXIC[0], TOXIC[2]], [NEUTRAL[1]] * 3)
    truth = SCORES[name].formula(model, collect_contrast(model, again, sites=model.sites()), []).sites
    np.testing.assert_allclose(drawn, truth, rtol=2e-3)


@pytest.mark.parametrize("name", RESAMPLED)
def test_a_shuffling_equals_a_pass_with_other_labels(name, model, found):
    w = weights([1, 0, 0, 1, 1, 0], [0, 1, 1, 0, 0, 1], True, found)
    drawn = SCORES[name].formula(model, found, [w]).draws[0][0]
    other = ContrastSet([TOXIC[0], NEUTRAL[0], NEUTRAL[1]], [TOXIC[1], TOXIC[2], NEUTRAL[2]])
    again = collect_contrast(model, other, peaks=True, reliance=True, sites=model.sites())
    truth = SCORES[name].formula(model, again, []).sites
    np.testing.assert_allclose(drawn, truth, rtol=2e-3)


def by_site(found, values):
    return BySite(zip(found.sites, values, strict=True))


def test_statistics_of_one_part_give_its_sites_the_scores_that_both_give(model, found):
    for part in ("mlp", "attention"):
        sites = model.sites(part)
        alone = collect_contrast(model, PAIRS, peaks=True, curvature=True, reliance=True, sites=sites)
        for name in set(SCORES) - {"combined", "gradient_calibrated"}:  # these are shares of all sites, or draws
            one, both = (SCORES[name].formula(model, s, []) for s in (alone, found))
            for values, expected in ((one.sites, both.sites), (one.units, both.units)):
                of_all = by_site(found, expected)
                for site, value in by_site(alone, values).items():
                    np.testing.assert_allclose(value, of_all[site], rtol=1e-4, atol=1e-7, err_msg=name)


def test_activation_of_heads_by_hand(model, found):
    """Root mean square over the elements of z of the difference of the means in pooled standard deviations."""
    units = by_site(found, SCORES["activation"].formula(model, found, []).units)
    for site in model.sites("attention"):
        rows = [rows_of(model, texts, site)[0].numpy() for texts in (TOXIC, NEUTRAL)]
        pooled = np.sqrt(sum(len(r) * r.var(0) for r in rows) / sum(map(len, rows)))
        apart = (rows[0].mean(0) - rows[1].mean(0)) / pooled
        expected = [np.sqrt((apart[:8] ** 2).mean()), np.sqrt((apart[8:] ** 2).mean())]
        np.testing.assert_allclose(units[site], expected, rtol=1e-3)


def test_gradient_norm_and_attribution_of_heads_by_hand(model, found):
    """From autograd on the weights, text by text."""
    (T, _, _), (N, _, _) = (statistics_of(model, texts, model.sites()) for texts in (TOXIC, NEUTRAL))
    norms, attributions = (SCORES[name].formula(model, found, []) for name in ("gradient_norm", "attribution"))
    for site in model.sites():
        G, W = (T[site]["G"] - N[site]["G"]).double(), model.W_out(site).double()
        width = 1 if site.part == "mlp" else 8
        blocks = [slice(i, i + width) for i in range(0, len(G), width)]
        np.testing.assert_allclose(by_site(found, norms.units)[site], [G[b].norm().item() for b in blocks], rtol=1e-3)
        assert by_site(found, norms.sites)[site] == pytest.approx(G.norm().item(), rel=1e-3)
        own = [-(G[b] * W[b]).sum().item() for b in blocks]
        np.testing.assert_allclose(by_site(found, attributions.units)[site], own, rtol=1e-3, atol=1e-5)
        assert by_site(found, attributions.sites)[site] == pytest.approx(sum(own), rel=1e-3, abs=1e-5)


def test_combined_by_hand(model, found):
    """Reliance from raw keys and output gradients of the toxic texts: tr(E[a_u a_uᵀ] W_u S W_uᵀ), unit by unit.

    The keys of a neuron are without the first position, where an attention sink may be; C of a head is with it.
    """
    plain, both = (SCORES[name].formula(model, found, []) for name in ("attribution", "combined"))
    np.testing.assert_array_equal(both.sites, plain.sites)
    positive = by_site(found, np.maximum(plain.sites, 0))
    truth, _, _ = statistics_of(model, TOXIC, model.sites())
    for site in model.sites():
        W, S, one = model.W_out(site).double(), truth[site]["S"].double(), truth[site]
        if site.part == "mlp":
            reliance = [(one["a"][:, j] ** 2).mean() * (W[j] @ S @ W[j]) for j in range(48)]
        else:
            C = rows_of(model, TOXIC, site, skip_first=False)[0]
            C = C.T @ C / len(C)
            reliance = [torch.trace(C[b, b] @ W[b] @ S @ W[b].T) for b in (slice(0, 8), slice(8, 16))]
        reliance = torch.stack(reliance).sqrt().numpy()
        a = by_site(found, plain.units)[site]
        expected = (a / a.std() + reliance / reliance.std()) * positive[site] / sum(positive.values())
        np.testing.assert_allclose(by_site(found, both.units)[site], expected, rtol=2e-3, atol=1e-6)


def test_reliance_is_how_far_removing_a_head_moves_the_predictions_to_second_order(model, found):
    """The cost of a head is E[|wᵀδ|²] in the Kronecker approximation; here the outer products are written out."""
    site = Site(1, "attention")
    view, C, S = model.at(site), found.C[site].double(), found.S[site].double()
    values, vectors = torch.linalg.eigh(S)
    root = vectors @ torch.diag(values.clamp_min(0).sqrt()) @ vectors.T
    costs = removal_costs(view, found.C[site], found.S[site])
    for head, b in enumerate((slice(0, 8), slice(8, 16))):
        moved = view.W[b].double() @ root  # d_head x d_model; a_h moves the outputs by a_h @ W_h
        expected = sum(C[b, b][i, j] * (moved[i] @ moved[j]) for i in range(8) for j in range(8))
        assert costs[head] == pytest.approx(expected.item(), rel=1e-5)


def test_auroc_of_heads_is_that_of_the_largest_norm_of_z_in_each_text(model, found):
    units = by_site(found, SCORES["auroc"].formula(model, found, []).units)
    for site in model.sites("attention"):
        sides = [
            np.stack([norm_of_heads(rows_of(model, [text], site)[0].numpy(), 2).max(0) for text in texts])
            for texts in (TOXIC, NEUTRAL)
        ]
        for head in range(2):
            truth = roc_auc_score([1, 1, 1, 0, 0, 0], np.concatenate(sides)[:, head])
            assert units[site][head] == pytest.approx(truth)


def test_auroc_is_that_of_scikit_learn(lm, pairs):
    s = collect_contrast(lm, pairs, gradients=False, peaks=True)
    scored = SCORES["auroc"].formula(lm, s, [])
    for layer, neuron in ((0, 3), (5, 1000)):
        x, y = (side.contributions.peaks.at(layer)[0][:, neuron] for side in (s.toxic, s.neutral))
        truth = roc_auc_score(np.r_[np.ones(len(x)), np.zeros(len(y))], np.r_[x, y])
        assert scored.units[layer][neuron] == pytest.approx(truth)
    np.testing.assert_array_equal(scored.sites, [values.max() for values in scored.units])


def test_bootstrapped_auroc_is_near_that_of_the_resampled_texts(lm, pairs):
    """Placements are of first order: the difference is small against the spread of the draws."""
    s = collect_contrast(lm, pairs, gradients=False, peaks=True)
    n = len(s.toxic.contributions.tokens)
    w = Weights.bootstrap(n, n, True, draws=30)
    (x, i), (y, j) = (side.contributions.peaks.at(2) for side in (s.toxic, s.neutral))
    x, y = x[np.argsort(s.toxic.contributions.group[i])], y[np.argsort(s.neutral.contributions.group[j])]
    drawn = SCORES["auroc"].formula(lm, s, [w]).draws[0][:, 2]
    exact = []
    for row in w.toxic[:, :n].astype(int):
        a, b = np.repeat(x, row, axis=0), np.repeat(y, row, axis=0)
        exact.append(
            max(
                roc_auc_score(np.r_[np.ones(n), np.zeros(n)], np.r_[a[:, k], b[:, k]])
                for k in np.argsort(-SCORES["auroc"].formula(lm, s, []).units[2])[:12]
            )
        )
    assert np.corrcoef(drawn, exact)[0, 1] > 0.8
    assert np.mean(drawn) == pytest.approx(np.mean(exact), abs=0.5 * np.std(exact) + 0.01)


def test_the_calibrated_norm_is_one_on_average_under_its_null(model, found):
    null = Weights.shuffled(3, 3, False, 50)
    scored = SCORES["gradient_calibrated"].formula(model, found, [null])
    np.testing.assert_allclose(scored.draws[0].mean(0), 1)
    raw = SCORES["gradient_norm"].formula(model, found, [null])
    np.testing.assert_allclose(scored.sites, raw.sites / raw.draws[0].mean(0))
    for site, units in by_site(found, scored.units).items():
        at = found.sites.index(site)
        # A unit of a site of n units has the n-th part of the squared norm on average.
        expected = raw.units[at] / (raw.draws[0][:, at].mean() / np.sqrt(len(raw.units[at])))
        np.testing.assert_allclose(units, expected)


def test_editability_is_the_gain_that_trne_reports(model, found):
    edit = TRNE.fit(model, PAIRS, norm=0.01, ridge=RIDGE, sites="all", statistics=found)
    gains = {Site.of(int(key) if key.isdigit() else key): gain for key, gain in edit.record["editability"].items()}
    scored = by_site(found, editability(model, found, []).sites)
    assert gains.keys() == scored.keys()
    for site, gain in gains.items():
        assert scored[site] == pytest.approx(gain, rel=1e-6)


def test_a_units_editability_is_the_best_gain_of_its_rows_alone(model, found):
    """By brute force: singular values of inverse roots of the ridged factors, cut to the unit's keys.

    A change dW of the rows u alone gains <G_u, dW> and costs tr(S dWᵀ C_uu dW): the largest gain at cost 1 among those
    of rank one is the largest singular value of C_uu^(-1/2) G_u S^(-1/2). No other direction that is tried gains more.
    """
    scored = by_site(found, editability(model, found, []).units)
    generator = torch.Generator().manual_seed(0)
    for site, b, unit in (
        (Site(1), slice(7, 8), 7),
        (Site(0, "attention"), slice(0, 8), 0),
        (Site(1, "attention"), slice(8, 16), 1),
    ):
        C, S, G = found.C[site].double(), found.S[site].double(), found.G(site)[b].double()
        C = C[b, b] + RIDGE * C.diagonal().mean() * torch.eye(b.stop - b.start)
        S = S + RIDGE * S.diagonal().mean() * torch.eye(len(S))
        best = torch.linalg.svdvals(inverse_root(C) @ G @ inverse_root(S))[0].item()
        assert scored[site][unit] == pytest.approx(best, rel=1e-4)
        for _ in range(50):
            x, y = (torch.randn(n, generator=generator, dtype=torch.float64) for n in G.shape)
            assert x @ G @ y / ((x @ C @ x) * (y @ S @ y)).sqrt() <= best * (1 + 1e-9)


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
