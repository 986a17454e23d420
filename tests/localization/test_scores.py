import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from tests.conftest import TEXTS, random_model
from toxloc import ContrastSet, ToxlocError, collect_contrast, localize, patch
from toxloc.interventions.methods.trne import TRNE
from toxloc.localization.difference_statistics import collect_differences, groups_of_pairs
from toxloc.localization.first_difference import first_differences
from toxloc.localization.linalg import factor, steepest, steepest_at_cost
from toxloc.localization.score_table import SCORES
from toxloc.localization.scores import RIDGE, editability, removal_costs
from toxloc.localization.uncertainty import Weights
from toxloc.models.sites import BySite, Site

from . import prefixes_by_hand
from .by_hand import norm_of_heads, rows_of, statistics_of

TOXIC, NEUTRAL = TEXTS[:3], TEXTS[2:]
PAIRS = ContrastSet(TOXIC, NEUTRAL)
RESAMPLED = ["combined", "activation", "gradient_norm", "attribution", "auroc"]


@pytest.fixture(scope="module")
def model():
    """A model with d_mlp 48 and d_model 16, whose gradients are sketched without loss."""
    return random_model("llama")


@pytest.fixture(scope="module")
def gathered(model):
    """The statistics of all MLPs and attentions, in one pass."""
    return collect_contrast(model, PAIRS, peaks=True, curvature=True, reliance=True, sites=model.sites())


def weights(toxic, neutral, null, s):
    """Return `Weights` of the groups from weights of the texts."""
    sides = []
    for w in (toxic, neutral):
        row = np.zeros(6)
        row[s.toxic.contributions.group] = w[:3]
        row[3 + s.neutral.contributions.group] = w[3:]
        sides.append(row[None])
    return Weights(*sides, null=null)


@pytest.mark.parametrize("name", RESAMPLED)
def test_the_draw_of_the_observed_texts_gives_the_score(name, model, gathered):
    scored = SCORES[name].formula(model, gathered, [Weights.observed(3, 3)])
    np.testing.assert_allclose(scored.draws[0][0], scored.sites, rtol=1e-3)


@pytest.mark.parametrize("name", ["activation", "gradient_norm", "attribution"])
def test_a_bootstrap_draw_equals_a_pass_over_the_repeated_texts(name, model, gathered):
    w = weights([2, 0, 1, 0, 0, 0], [0, 0, 0, 0, 3, 0], False, gathered)
    drawn = SCORES[name].formula(model, gathered, [w]).draws[0][0]
    again = ContrastSet([TOXIC[0], TOXIC[0], TOXIC[2]], [NEUTRAL[1]] * 3)
    truth = SCORES[name].formula(model, collect_contrast(model, again, sites=model.sites()), []).sites
    np.testing.assert_allclose(drawn, truth, rtol=2e-3)


@pytest.mark.parametrize("name", RESAMPLED)
def test_a_shuffle_equals_a_pass_with_the_shuffled_labels(name, model, gathered):
    w = weights([1, 0, 0, 1, 1, 0], [0, 1, 1, 0, 0, 1], True, gathered)
    drawn = SCORES[name].formula(model, gathered, [w]).draws[0][0]
    other = ContrastSet([TOXIC[0], NEUTRAL[0], NEUTRAL[1]], [TOXIC[1], TOXIC[2], NEUTRAL[2]])
    again = collect_contrast(model, other, peaks=True, reliance=True, sites=model.sites())
    truth = SCORES[name].formula(model, again, []).sites
    np.testing.assert_allclose(drawn, truth, rtol=2e-3)


def by_site(gathered, values):
    return BySite(zip(gathered.sites, values, strict=True))


def test_a_site_has_the_same_scores_from_statistics_of_one_part_and_of_both(model, gathered):
    for part in ("mlp", "attention"):
        sites = model.sites(part)
        alone = collect_contrast(model, PAIRS, peaks=True, curvature=True, reliance=True, sites=sites)
        # These depend on all sites, or on draws, or are for pairs or for experts.
        for name in set(SCORES) - {"combined", "counterfactual", "gradient_calibrated", "routing"}:
            single, both = (SCORES[name].formula(model, s, []) for s in (alone, gathered))
            for values, expected in ((single.sites, both.sites), (single.units, both.units)):
                of_all = by_site(gathered, expected)
                for site, value in by_site(alone, values).items():
                    np.testing.assert_allclose(value, of_all[site], rtol=1e-4, atol=1e-7, err_msg=name)


def test_activation_of_heads_by_hand(model, gathered):
    """Root mean square over the elements of z of the difference of the means in pooled standard deviations."""
    units = by_site(gathered, SCORES["activation"].formula(model, gathered, []).units)
    for site in model.sites("attention"):
        rows = [rows_of(model, texts, site)[0].numpy() for texts in (TOXIC, NEUTRAL)]
        pooled = np.sqrt(sum(len(r) * r.var(0) for r in rows) / sum(map(len, rows)))
        difference = (rows[0].mean(0) - rows[1].mean(0)) / pooled
        expected = [np.sqrt((difference[:8] ** 2).mean()), np.sqrt((difference[8:] ** 2).mean())]
        np.testing.assert_allclose(units[site], expected, rtol=1e-3)


def test_gradient_norm_and_attribution_of_heads_by_hand(model, gathered):
    """The expected values come from autograd on the weights, text by text."""
    (T, _, _), (N, _, _) = (statistics_of(model, texts, model.sites()) for texts in (TOXIC, NEUTRAL))
    norms, attributions = (SCORES[name].formula(model, gathered, []) for name in ("gradient_norm", "attribution"))
    for site in model.sites():
        G, W = (T[site]["G"] - N[site]["G"]).double(), model.W_out(site).double()
        width = 1 if site.part == "mlp" else 8
        blocks = [slice(i, i + width) for i in range(0, len(G), width)]
        expected = [G[b].norm().item() for b in blocks]
        np.testing.assert_allclose(by_site(gathered, norms.units)[site], expected, rtol=1e-3)
        assert by_site(gathered, norms.sites)[site] == pytest.approx(G.norm().item(), rel=1e-3)
        expected = [-(G[b] * W[b]).sum().item() for b in blocks]
        np.testing.assert_allclose(by_site(gathered, attributions.units)[site], expected, rtol=1e-3, atol=1e-5)
        assert by_site(gathered, attributions.sites)[site] == pytest.approx(sum(expected), rel=1e-3, abs=1e-5)


def test_the_attribution_of_a_site_is_the_sum_over_its_units_also_for_a_single_token(tiny):
    s = collect_contrast(tiny, ContrastSet(["ab"], ["x y z w v"]), skip_first=False)
    assert s.toxic.n_predicted == 1
    assert all(s.toxic.contributions.attribution[site].abs().sum() > 0 for site in s.sites)
    scored = SCORES["attribution"].formula(tiny, s, [])
    np.testing.assert_allclose(scored.sites, [units.sum() for units in scored.units], rtol=1e-4)


def test_combined_by_hand(model, gathered):
    """Reliance is computed from keys and output gradients of the toxic texts: tr(E[a_u a_uᵀ] W_u S W_uᵀ), unit by unit.

    The keys of a neuron leave out the first position, which can be an attention sink; C of a head includes it.
    """
    plain, both = (SCORES[name].formula(model, gathered, []) for name in ("attribution", "combined"))
    np.testing.assert_array_equal(both.sites, plain.sites)
    positive = by_site(gathered, np.maximum(plain.sites, 0))
    truth, _, _ = statistics_of(model, TOXIC, model.sites())
    for site in model.sites():
        W, S, a = model.W_out(site).double(), truth[site]["S"].double(), truth[site]["a"]
        if site.part == "mlp":
            reliance = [(a[:, j] ** 2).mean() * (W[j] @ S @ W[j]) for j in range(48)]
        else:
            C = rows_of(model, TOXIC, site, skip_first=False)[0]
            C = C.T @ C / len(C)
            reliance = [torch.trace(C[b, b] @ W[b] @ S @ W[b].T) for b in (slice(0, 8), slice(8, 16))]
        reliance = torch.stack(reliance).sqrt().numpy()
        units = by_site(gathered, plain.units)[site]
        expected = (units / units.std() + reliance / reliance.std()) * positive[site] / sum(positive.values())
        np.testing.assert_allclose(by_site(gathered, both.units)[site], expected, rtol=2e-3, atol=1e-6)


def test_the_removal_cost_of_a_head_is_the_second_order_change_of_the_predictions(model, gathered):
    """The cost of a head is E[|wᵀδ|²] in the Kronecker approximation, computed here from outer products."""
    site = Site(1, "attention")
    view, C, S = model.at(site), gathered.C[site].double(), gathered.S[site].double()
    values, vectors = torch.linalg.eigh(S)
    root = vectors @ torch.diag(values.clamp_min(0).sqrt()) @ vectors.T
    costs = removal_costs(view, gathered.C[site], gathered.S[site])
    for head, b in enumerate((slice(0, 8), slice(8, 16))):
        moved = view.W[b].double() @ root  # [d_head, d_model]; a_h changes the outputs by a_h @ W_h
        expected = sum(C[b, b][i, j] * (moved[i] @ moved[j]) for i in range(8) for j in range(8))
        assert costs[head] == pytest.approx(expected.item(), rel=1e-5)


def test_auroc_of_heads_uses_the_largest_norm_of_z_in_each_text(model, gathered):
    units = by_site(gathered, SCORES["auroc"].formula(model, gathered, []).units)
    for site in model.sites("attention"):
        sides = [
            np.stack([norm_of_heads(rows_of(model, [text], site)[0].numpy(), 2).max(0) for text in texts])
            for texts in (TOXIC, NEUTRAL)
        ]
        for head in range(2):
            truth = roc_auc_score([1, 1, 1, 0, 0, 0], np.concatenate(sides)[:, head])
            assert units[site][head] == pytest.approx(truth)


def test_auroc_equals_that_of_scikit_learn(lm, pairs):
    s = collect_contrast(lm, pairs, gradients=False, peaks=True)
    scored = SCORES["auroc"].formula(lm, s, [])
    for layer, neuron in ((0, 3), (5, 1000)):
        x, y = (side.contributions.peaks.at(layer)[0][:, neuron] for side in (s.toxic, s.neutral))
        truth = roc_auc_score(np.r_[np.ones(len(x)), np.zeros(len(y))], np.r_[x, y])
        assert scored.units[layer][neuron] == pytest.approx(truth)
    np.testing.assert_array_equal(scored.sites, [values.max() for values in scored.units])


def test_bootstrapped_auroc_is_close_to_that_of_the_resampled_texts(lm, pairs):
    """Placements are a first-order approximation: the error is small compared with the spread of the draws."""
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


def test_the_calibrated_norm_is_one_on_average_under_its_null(model, gathered):
    null = Weights.shuffled(3, 3, False, 50)
    scored = SCORES["gradient_calibrated"].formula(model, gathered, [null])
    np.testing.assert_allclose(scored.draws[0].mean(0), 1)
    raw = SCORES["gradient_norm"].formula(model, gathered, [null])
    np.testing.assert_allclose(scored.sites, raw.sites / raw.draws[0].mean(0))
    for site, units in by_site(gathered, scored.units).items():
        at = gathered.sites.index(site)
        # In a site of n units, a unit has on average 1 / n of the squared norm.
        expected = raw.units[at] / (raw.draws[0][:, at].mean() / np.sqrt(len(raw.units[at])))
        np.testing.assert_allclose(units, expected)


def test_editability_is_the_gain_that_trne_reports(model, gathered):
    edit = TRNE.fit(model, PAIRS, norm=0.01, ridge=RIDGE, sites="all", statistics=gathered)
    gains = {Site.of(int(key) if key.isdigit() else key): gain for key, gain in edit.record["editability"].items()}
    scored = by_site(gathered, editability(model, gathered, []).sites)
    assert gains.keys() == scored.keys()
    for site, gain in gains.items():
        assert scored[site] == pytest.approx(gain, rel=1e-6)


def test_the_editability_of_a_unit_is_the_largest_gain_of_its_rows(model, gathered):
    """The expected value is computed from inverse roots of the factors plus a ridge, restricted to the unit's keys.

    A change dW of the rows u gains <G_u, dW> and costs tr(S dWᵀ C_uu dW). The largest gain of a rank-one change of cost
    1 is the largest singular value of C_uu^(-1/2) G_u S^(-1/2). None of 50 random directions gains more.
    """
    scored = by_site(gathered, editability(model, gathered, []).units)
    generator = torch.Generator().manual_seed(0)
    for site, b, unit in (
        (Site(1), slice(7, 8), 7),
        (Site(0, "attention"), slice(0, 8), 0),
        (Site(1, "attention"), slice(8, 16), 1),
    ):
        C, S, G = gathered.C[site].double(), gathered.S[site].double(), gathered.G(site)[b].double()
        C = C[b, b] + RIDGE * C.diagonal().mean() * torch.eye(b.stop - b.start)
        S = S + RIDGE * S.diagonal().mean() * torch.eye(len(S))
        best = torch.linalg.svdvals(inverse_root(C) @ G @ inverse_root(S))[0].item()
        assert scored[site][unit] == pytest.approx(best, rel=1e-4)
        for _ in range(50):
            x, y = (torch.randn(n, generator=generator, dtype=torch.float64) for n in G.shape)
            assert x @ G @ y / ((x @ C @ x) * (y @ S @ y)).sqrt() <= best * (1 + 1e-9)


def test_missing_statistics_are_named_with_the_argument_that_gathers_them(model):
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


def test_steepest_at_cost_is_the_singular_triple_of_the_whitened_gradient():
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


@pytest.fixture(scope="module")
def compared(model):
    """The statistics of the first differences of pairs, at all MLPs and attentions."""
    return collect_contrast(model, prefixes_by_hand.PAIRS, sites=model.sites(), gradients=False, differences=True)


def values_per_pair(model):
    """The values of every site for every usable pair, and those of units, from autograd on the plain model."""
    pairs = prefixes_by_hand.PAIRS
    means = {site: rows_of(model, pairs.neutral, site)[0].mean(0) for site in model.sites()}
    return [prefixes_by_hand.values_of(model, i, model.sites(), means)[0] for i in prefixes_by_hand.USABLE]


def test_counterfactual_by_hand(model, compared):
    """Mean over pairs; a neuron is a key, and a head the sum over its keys."""
    scored = SCORES["counterfactual"].formula(model, compared, [Weights.observed(4, 4)])
    values = values_per_pair(model)
    for site in model.sites():
        per_key = np.mean([pair[site].sum(0).numpy() for pair in values], axis=0)
        width = 1 if site.part == "mlp" else 8
        assert by_site(compared, scored.sites)[site] == pytest.approx(per_key.sum(), rel=2e-3, abs=1e-5)
        expected = per_key.reshape(-1, width).sum(1)
        np.testing.assert_allclose(by_site(compared, scored.units)[site], expected, rtol=2e-3, atol=1e-5)
    np.testing.assert_allclose(scored.draws[0][0], scored.sites)


def test_draws_of_counterfactual_repeat_pairs_or_change_their_signs(model, compared):
    values = values_per_pair(model)
    totals = np.array([[pair[site].sum().item() for site in compared.sites] for pair in values])
    group = groups_of_pairs(4)  # in which each pair is alone
    times = np.array([2.0, 0.0, 1.0, 1.0])
    counts, stays = np.zeros(4), np.zeros(4)
    counts[group] = times
    stays[group] = [1, 0, 0, 1]
    none = np.zeros(4)
    repeated = Weights(np.r_[counts, none][None], np.r_[none, counts][None], null=False)
    swapped = Weights(np.r_[stays, 1 - stays][None], np.r_[1 - stays, stays][None], null=True)
    scored = SCORES["counterfactual"].formula(model, compared, [repeated, swapped])
    np.testing.assert_allclose(scored.draws[0], [times @ totals / 4], rtol=2e-3, atol=1e-5)
    signs = np.array([1, -1, -1, 1]) @ totals / 4
    np.testing.assert_allclose(scored.draws[1], [signs, -signs], rtol=2e-3, atol=1e-5)


def test_swapping_the_sides_changes_the_sign_of_the_difference_and_of_the_values(model):
    """With a baseline of zero, which both directions share."""
    there = prefixes_by_hand.PAIRS
    back = ContrastSet(there.neutral, there.toxic, paired=True)
    a, b = (collect_differences(model, first_differences(model, pairs), sites=model.sites()) for pairs in (there, back))
    assert a.difference == pytest.approx(-b.difference, rel=1e-5)
    for site in model.sites():
        np.testing.assert_allclose(a.units[site], -b.units[site], rtol=1e-3, atol=1e-6)


def test_the_mean_baseline_leaves_out_what_a_layer_adds_in_every_text():
    """A neuron with the same activation in every text favours the more frequent words, which are neutral.

    With a baseline of zero, the layer seems to push against toxicity in every pair. Its mean takes that away.
    """
    lm = random_model("gpt2")
    pairs, neuron = prefixes_by_hand.PAIRS, 7
    differences = first_differences(lm, pairs)
    table = lm.hf.get_output_embeddings().weight
    with torch.no_grad():
        frequent = sum(table[pair.neutral[0]] - table[pair.toxic[0]] for pair in differences.usable)
        mlp = lm.hf.transformer.h[1].mlp
        mlp.c_fc.weight[:, neuron] = 0
        mlp.c_fc.bias[neuron] = 3
        mlp.c_proj.weight *= 0.1
        mlp.c_proj.weight[neuron] = 2 * frequent / frequent.norm()
    zero = collect_differences(lm, differences, sites=[1])
    assert (zero.sites[1] < 0).all()
    assert zero.units[1].argmin() == neuron
    loc = localize(lm, pairs, ("counterfactual",), draws=0)
    assert loc.neuron_scores("counterfactual")[1, neuron] == pytest.approx(0, abs=1e-4 * abs(zero.units[1][neuron]))
    assert abs(loc.layer_scores("counterfactual")[1]) < abs(zero.units[1].sum()) / 2
    # Zeroing the neuron by hand agrees with the zero baseline: it does favour the neutral words.
    assert patch(lm, pairs, [(1, neuron)], "zero", draws=0).effect[0] < 0
    assert patch(lm, pairs, [(1, neuron)], "mean", draws=0).effect[0] == pytest.approx(0, abs=1e-5)


def test_counterfactual_without_differences_is_a_sentence(model, gathered):
    with pytest.raises(ToxlocError, match=r"collect_contrast\(differences=True\)"):
        SCORES["counterfactual"].formula(model, gathered, [])
