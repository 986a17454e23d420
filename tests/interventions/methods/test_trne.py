import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from benchmarks.families import DENSE, LAYOUTS
from tests.conftest import TEXTS, bits, random_model, same_bits
from toxloc import TRNE, ContrastSet, Meow2X, NeutralText, ToxlocError, collect_contrast, load_intervention
from toxloc.evaluation.cost.fluency import measure_fluency
from toxloc.evaluation.cost.perplexity import mean_nll
from toxloc.interventions.rank_one import RankOne
from toxloc.localization.linalg import steepest, steepest_at_cost, steepest_beyond_noise
from toxloc.models.sites import Site

PAIRS = ContrastSet(TEXTS[:2], TEXTS[2:])


def contrast(lm, pairs):
    """NLL_T - NLL_N, each the mean per token of at most 128 tokens of each text."""
    return mean_nll(lm, pairs.toxic, 128) - mean_nll(lm, pairs.neutral, 128)


def best_rank_one(G, cost, rng):
    """Search numerically, from several starts, for the largest <G, u vᵀ> over rank-one changes of cost 1."""
    d, m = G.shape

    def negative_gain(x):
        u, v = x[:d], x[d:]
        return -(u @ G @ v) / math.sqrt(cost(u, v))

    return max(-minimize(negative_gain, rng.normal(size=d + m), method="BFGS").fun for _ in range(6))


def random_spd(rng, d):
    A = rng.normal(size=(d, d))
    return A @ A.T / d


def test_the_frobenius_form_is_the_best_rank_one_change_of_its_norm():
    rng = np.random.default_rng(0)
    G = rng.normal(size=(6, 4))
    sigma, u, v = steepest(torch.tensor(G))
    assert u @ torch.tensor(G) @ v == pytest.approx(sigma)
    assert sigma == pytest.approx(best_rank_one(G, lambda u, v: (u @ u) * (v @ v), rng), rel=1e-5)


@pytest.mark.parametrize("ridge", [0.1, 1.0])
def test_the_kl_form_is_the_best_rank_one_change_of_its_second_order_cost(ridge):
    rng = np.random.default_rng(1)
    G, C, S = rng.normal(size=(6, 4)), random_spd(rng, 6), random_spd(rng, 4)
    ridged = [M + ridge * np.trace(M) / len(M) * np.eye(len(M)) for M in (C, S)]
    sigma, u, v = steepest_at_cost(*map(torch.tensor, (G, C, S)), ridge)
    u, v = u.numpy(), v.numpy()
    assert (u @ ridged[0] @ u) * (v @ ridged[1] @ v) == pytest.approx(1)
    best = best_rank_one(G, lambda u, v: (u @ ridged[0] @ u) * (v @ ridged[1] @ v), rng)
    assert u @ G @ v == pytest.approx(best, rel=1e-5)
    assert sigma == pytest.approx(best, rel=1e-5)


def test_frobenius_edit_has_the_norm_asked_for_and_lies_in_the_layer_of_the_largest_gradient(tiny):
    s = collect_contrast(tiny, PAIRS)
    edit = TRNE.fit(tiny, PAIRS, metric="frobenius", norm=0.02, statistics=s)
    strongest = max(range(2), key=lambda i: s.G(i).norm())
    assert [e.site for e in edit.edits] == [Site(strongest)]
    before = tiny.W_out(strongest).clone()
    with edit.applied(tiny):
        change = tiny.W_out(strongest) - before
    assert (change.norm() / before.norm()).item() == pytest.approx(0.02, rel=1e-4)
    assert torch.linalg.matrix_rank(change, rtol=1e-3) == 1
    assert (change * s.G(strongest)).sum() > 0


def test_layers_share_the_norm(tiny):
    edit = TRNE.fit(tiny, PAIRS, metric="frobenius", norm=0.1, layers=2)
    shares = [(e.u.norm() * e.v.norm() / tiny.W_out(e.layer).norm()).item() for e in edit.edits]
    assert shares == pytest.approx([0.1 / math.sqrt(2)] * 2, rel=1e-4)


def test_kl_edit_spends_in_proportion_to_editability_squared(tiny):
    s = collect_contrast(tiny, PAIRS, curvature=True)
    edit = TRNE.fit(tiny, PAIRS, norm=0.05, statistics=s)
    gains = [(torch.outer(e.u, e.v) * s.G(e.layer)).sum().item() for e in edit.edits]
    strength = edit.record["strength"]
    for e, gain in zip(edit.edits, gains, strict=True):
        assert gain == pytest.approx(strength * edit.record["editability"][str(e.site.layer)] ** 2, rel=1e-3)
    assert edit.record["norm"] == pytest.approx(0.05)


def test_the_edit_is_in_both_trees_and_in_the_weights_that_are_saved(any_family):
    lm = any_family
    edit = TRNE.fit(lm, PAIRS, norm=0.1, neutral=None)
    before = bits(lm)
    ids = torch.tensor([[0, 5, 9, 100]])
    with edit.applied(lm), torch.no_grad():
        weight = lm.down_projection(edit.edits[0].layer).weight
        W = weight if weight.shape == (lm.d_mlp, lm.d_model) else weight.T
        torch.testing.assert_close(W, lm.W_out(edit.edits[0].layer), rtol=0, atol=0)
        assert not same_bits(before, lm)
        torch.testing.assert_close(
            lm.forward(ids, torch.ones_like(ids)), lm.hf(input_ids=ids).logits, rtol=1e-5, atol=1e-5
        )
    assert same_bits(before, lm)


def test_the_contrast_rises_as_predicted(lm, pairs, neutral):
    s = collect_contrast(lm, pairs, curvature=True)
    edit = TRNE.fit(lm, pairs, norm=0.002, statistics=s, neutral=neutral)

    def collected_contrast():
        statistics = collect_contrast(lm, pairs)
        return statistics.toxic.nll - statistics.neutral.nll

    before = collected_contrast()
    with edit.applied(lm):
        rise = collected_contrast() - before
    # The prediction is approximate: it is of first order, and statistics skip the first position's key.
    predicted = sum((torch.outer(e.u, e.v) * s.G(e.layer)).sum().item() for e in edit.edits)
    assert rise == pytest.approx(predicted, rel=0.15)


def test_fit_spends_its_budget_and_no_more_and_leaves_the_model_unchanged(lm, pairs, neutral):
    before = bits(lm)
    edit = TRNE.fit(lm, pairs, budget=0.01, neutral=neutral)
    assert same_bits(before, lm)
    base = mean_nll(lm, neutral.tune)
    with edit.applied(lm):
        rise = np.expm1(mean_nll(lm, neutral.tune) - base)
    assert 0.009 <= rise <= 0.01
    assert edit.record["tuned_perplexity_ratio"] == pytest.approx(1 + rise)
    assert edit.record["evaluations"] <= 5
    assert len(edit.record["editability"]) == 8


def assert_weights_come_back(edit, lm):
    before = bits(lm)
    edit.apply(lm)
    assert not same_bits(before, lm)
    edit.revert(lm)
    assert same_bits(before, lm)
    with pytest.raises(RuntimeError), edit.applied(lm):
        raise RuntimeError
    assert same_bits(before, lm)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_come_back_bit_for_bit(dtype):
    lm = random_model("gpt2", dtype=dtype)
    assert_weights_come_back(TRNE([RankOne(i, torch.randn(lm.d_mlp), torch.randn(lm.d_model)) for i in range(2)]), lm)


def test_an_interrupt_in_the_middle_of_applying_restores_the_weights(tiny, monkeypatch):
    before = bits(tiny)
    edit = TRNE([RankOne(i, torch.randn(tiny.d_mlp), torch.randn(tiny.d_model)) for i in range(2)])
    real, calls = torch.addmm, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(torch, "addmm", interrupted)
    with pytest.raises(KeyboardInterrupt):
        edit.apply(tiny)
    assert len(calls) == 2
    assert same_bits(before, tiny)


def test_save_and_load(tiny, tmp_path):
    edit = TRNE.fit(tiny, PAIRS, norm=0.05)
    edit.save(tmp_path / "e")
    again = load_intervention(tmp_path / "e")
    assert isinstance(again, TRNE)
    for a, b in zip(edit.edits, again.edits, strict=True):
        assert a.site == b.site
        torch.testing.assert_close((a.u, a.v), (b.u, b.v), rtol=0, atol=0)
    assert again.record == edit.record
    assert again.fitted_on == {"name": "random-gpt2", "fingerprint": tiny.fingerprint}


def test_interventions_compose_and_unwind_in_order(tiny):
    before = bits(tiny)
    edit = TRNE([RankOne(0, torch.randn(tiny.d_mlp), torch.randn(tiny.d_model))])
    meow = Meow2X(neurons=[(0, 1)], scale=0.0, mode="weights")
    edit.apply(tiny)
    meow.apply(tiny)
    assert tiny.W_out(0)[1].abs().max() == 0
    with pytest.raises(ToxlocError, match="was applied to random-gpt2 after"):
        edit.revert(tiny)
    with tiny.unedited():
        assert same_bits(before, tiny)
    assert tiny.W_out(0)[1].abs().max() == 0
    meow.revert(tiny)
    edit.revert(tiny)
    assert same_bits(before, tiny)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(metric="cosine"), "metric='cosine': it must be 'kl' or 'frobenius'"),
        (dict(budget=0.01, norm=0.1), "Give one of budget=, norm= and strength="),
        (dict(budget=-1), "not -1"),
        (dict(norm=0.0), "norm=0.0: it must be greater than 0"),
        (dict(ridge=0.0), "ridge must be positive"),
        (dict(layers=3), r"layers=3 .* give 1 to 2"),
        (dict(layers=[5]), "There is no layer 5 in random-gpt2"),
        (dict(layers=[]), "leaves nothing to edit"),
        (dict(budget=None), "budget=None is not a budget"),
    ],
)
def test_bad_arguments(tiny, arguments, words):
    with pytest.raises(ToxlocError, match=words):
        TRNE.fit(tiny, PAIRS, **arguments)


def test_an_edit_for_another_shape_is_refused(tiny):
    edit = TRNE([RankOne(0, torch.ones(10), torch.ones(16))])
    with pytest.raises(ToxlocError, match="is for d_mlp=10, d_model=16; random-gpt2 has d_mlp=64"):
        edit.apply(tiny)


def test_the_kl_metric_needs_the_curvature(tiny):
    with pytest.raises(ToxlocError, match="needs the curvature"):
        TRNE.fit(tiny, PAIRS, norm=0.1, statistics=collect_contrast(tiny, PAIRS))


def test_sigma_without_noise_is_that_of_the_mean_gradient_and_near_the_truth_with_it():
    rng = np.random.default_rng(2)
    truth, C, S = 3 * np.outer(rng.normal(size=12), rng.normal(size=8)), random_spd(rng, 12), random_spd(rng, 8)
    C, S = (torch.tensor(M + np.eye(len(M))) for M in (C, S))
    exact = steepest_at_cost(torch.tensor(truth), C, S, 0.5)
    same = steepest_beyond_noise((torch.tensor(truth), torch.tensor(truth)), C, S, 0.5)
    assert same[0] == pytest.approx(exact[0])
    torch.testing.assert_close(torch.outer(same[1], same[2]), torch.outer(exact[1], exact[2]))
    noise_only, both = [], []
    for _ in range(40):
        A, B = (torch.tensor(6 * rng.normal(size=truth.shape)) for _ in "AB")
        noise_only.append([steepest_at_cost((A + B) / 2, C, S, 0.5)[0], steepest_beyond_noise((A, B), C, S, 0.5)[0]])
        both.append(
            [
                steepest_at_cost((A + B) / 2 + truth, C, S, 0.5)[0],
                steepest_beyond_noise((A + truth, B + truth), C, S, 0.5)[0],
            ]
        )
    plain, beyond = np.mean(noise_only, axis=0)
    assert beyond < 0.9 * plain
    plain, beyond = np.mean(both, axis=0)
    assert abs(beyond - exact[0]) < abs(plain - exact[0])


def test_halves_that_agree_on_nothing_leave_the_layer_unchanged():
    G = torch.eye(5, 4)
    sigma, u, _ = steepest_beyond_noise((G, -G), torch.eye(5), torch.eye(4), 1.0)
    assert sigma == 0
    assert u.isfinite().all()


@pytest.mark.parametrize(
    "options",
    [
        dict(shrink=True),
        dict(fisher="sampled"),
        dict(rounds=2),
        dict(ridge="auto"),
        dict(emphasis={0: 0.0, 1: 2.0}),
        dict(ridge="auto", shrink=True, rounds=2),
    ],
)
def test_every_option_keeps_the_budget_raises_the_contrast_and_leaves_the_model_unchanged(options):
    lm = random_model("llama", scale=4.0)
    pairs = ContrastSet(TEXTS[:2] * 3, TEXTS[2:4] * 3)
    neutral = NeutralText(TEXTS[:2], TEXTS[3:], TEXTS[2:3])
    before, contrast_before = bits(lm), contrast(lm, pairs)
    edit = TRNE.fit(lm, pairs, budget={"kl": 0.02}, neutral=neutral, **options)
    assert same_bits(before, lm)
    with edit.applied(lm):
        assert 0 < measure_fluency(lm, neutral.tune).kl <= 0.02
        assert contrast(lm, pairs) > contrast_before
        norms = relative_norms(lm)
    rounds = options.get("rounds", 1)
    assert edit.record["rounds"] == rounds
    assert len(edit.edits) == 2 * rounds
    assert edit.record["relative_norm"]["1"] == pytest.approx(norms[1], rel=0.05)
    assert sum(edit.record["share_of_cost"].values()) == pytest.approx(1)
    if options.get("ridge") == "auto":
        rises = edit.record["ridges"]
        assert list(rises) == ["0.1", "0.3", "1.0", "3.0"]
        assert edit.settings["ridge"] == float(max(rises, key=rises.get))
        held_out = pairs.split(0.8, 0)[1]
        before = contrast(lm, held_out)
        with edit.applied(lm):
            assert rises[str(edit.settings["ridge"])] == pytest.approx(contrast(lm, held_out) - before, abs=1e-6)
    if "emphasis" in options:
        assert edit.record["relative_norm"]["0"] == 0


@pytest.mark.parametrize(
    ("options", "shared"),
    [
        ({}, True),
        ({"metric": "frobenius"}, True),
        ({"ridge": "auto"}, False),
        ({"shrink": True}, False),
        ({"fisher": "sampled"}, False),
    ],
)
def test_statistics_are_shared_unless_the_fit_gathers_its_own(options, shared):
    assert TRNE.Settings(**options).shares_statistics is shared


def test_the_sampled_fisher_is_gathered_for_the_fit(tiny):
    neutral = NeutralText(TEXTS[2:], TEXTS[3:], TEXTS[:1])
    gathered = collect_contrast(tiny, PAIRS, curvature=True, fisher="sampled", more_neutral=neutral.fit)
    given = TRNE.fit(tiny, PAIRS, strength=1.0, fisher="sampled", neutral=neutral, statistics=gathered)
    fitted = TRNE.fit(tiny, PAIRS, strength=1.0, fisher="sampled", neutral=neutral)
    empirical = TRNE.fit(tiny, PAIRS, strength=1.0, neutral=neutral)
    for edit, expected, other in zip(fitted.edits, given.edits, empirical.edits, strict=True):
        torch.testing.assert_close(edit.v, expected.v, rtol=1e-4, atol=1e-6)
        assert (edit.v - other.v).norm() > 1e-2 * other.v.norm()


def relative_norms(lm):
    """Return ||ΔW|| / ||W|| by layer for the applied interventions."""
    after = [lm.W_out(layer).clone() for layer in range(lm.n_layers)]
    with lm.unedited():
        return [float((W - lm.W_out(layer)).norm() / lm.W_out(layer).norm()) for layer, W in enumerate(after)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(ridge="none"), "ridge"),
        (dict(metric="frobenius", shrink=True), 'need metric="kl"'),
        (dict(rounds=0), "rounds=0: it must be greater than or equal to 1"),
        (dict(rounds=2, norm=0.1), "instead of norm="),
        (dict(fisher="true"), "fisher='true': it must be 'empirical' or 'sampled'"),
        (dict(emphasis={5: 1.0}), "There is no layer 5 in random-gpt2; it has layers 0 to 1"),
        (dict(emphasis={0: -1.0}), "emphasis=-1.0: it must be greater than or equal to 0"),
        (dict(emphasis={0: 0.0, 1: 0}), "emphasis is 0 for every edited layer"),
        (dict(emphasis={0: "much"}), "emphasis='much': it must be a valid number"),
        *[
            ({name: value}, f"{name}={value}: it must be a finite number")
            for name in ("norm", "strength", "ridge")
            for value in (math.nan, math.inf)
        ],
        (dict(emphasis={0: math.nan}), "it must be a finite number"),
    ],
)
def test_incompatible_options(tiny, options, words):
    with pytest.raises(ToxlocError, match=words):
        TRNE.fit(tiny, PAIRS, **options)


def test_weights_of_zero_have_no_frobenius_edit(tiny):
    for layer in range(tiny.n_layers):
        tiny.W_out(layer).zero_()
    with pytest.raises(ToxlocError, match=r"cannot edit random-gpt2: .* or the weights are zero"):
        TRNE.fit(tiny, PAIRS, metric="frobenius", norm=0.1)


def test_options_that_divide_the_set_take_no_statistics(tiny):
    with pytest.raises(ToxlocError, match="leave statistics= out"):
        TRNE.fit(tiny, PAIRS, shrink=True, statistics=collect_contrast(tiny, PAIRS, curvature=True))


# Attentions: the same edits of W_O


def rank_ones(lm, *sites, size=0.5):
    torch.manual_seed(2)
    return TRNE([RankOne(site, size * torch.randn(lm.at(site).d_in), size * torch.randn(lm.d_model)) for site in sites])


def test_an_edit_of_W_O_is_in_the_weights_of_the_plain_model_and_in_both_trees(any_family):
    lm, site = any_family, Site(1, "attention")
    edit = rank_ones(lm, site)
    before, untouched = bits(lm), lm.down_projection(site).weight.clone()
    ids = torch.tensor([[0, 5, 9, 100]])
    base = lm.hf(input_ids=ids).logits
    with edit.applied(lm), torch.no_grad():
        weight = lm.down_projection(site).weight
        change = torch.outer(edit.edits[0].u, edit.edits[0].v)
        torch.testing.assert_close(
            weight - untouched, change if lm.model_type == "gpt2" else change.T, rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(weight if lm.model_type == "gpt2" else weight.T, lm.W_out(site), rtol=0, atol=0)
        changed = [
            name for (name, now), was in zip(lm.hf.named_parameters(), before, strict=True) if not torch.equal(now, was)
        ]
        assert len(changed) == 1  # nothing but W_O
        hooked, plain = lm.forward(ids, torch.ones_like(ids)), lm.hf(input_ids=ids).logits
    torch.testing.assert_close(hooked, plain, rtol=1e-5, atol=1e-5)
    assert (plain - base).abs().max() > 1e-3
    assert same_bits(before, lm)


@pytest.mark.parametrize("family", sorted(set(DENSE) - set(LAYOUTS)))
def test_an_edit_of_W_O_in_every_other_family(family):
    lm, site = random_model(family), Site(0, "attention")
    edit, ids = rank_ones(lm, site), torch.tensor([[0, 5, 9, 100]])
    weight = lm.down_projection(site).weight
    untouched, base = weight.clone(), lm.hf(input_ids=ids).logits
    with edit.applied(lm), torch.no_grad():
        torch.testing.assert_close(
            (weight - untouched).T, torch.outer(edit.edits[0].u, edit.edits[0].v), rtol=1e-4, atol=1e-5
        )
        hooked, plain = lm.forward(ids, torch.ones_like(ids)), lm.hf(input_ids=ids).logits
    torch.testing.assert_close(hooked, plain, rtol=1e-5, atol=1e-5)
    assert (plain - base).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_W_O_comes_back_bit_for_bit(family, dtype):
    lm = random_model(family, dtype=dtype)
    assert_weights_come_back(rank_ones(lm, Site(0, "attention"), Site(1, "attention"), Site(0)), lm)


def test_W_out_and_W_O_of_a_layer_are_saved_separately(tiny, tmp_path):
    edit = rank_ones(tiny, 0, "0.attention", "1.attention", 0)
    edit.save(tmp_path / "e")
    again = load_intervention(tmp_path / "e")
    factors = edit.low_rank()
    assert list(factors) == [Site(0, "attention"), Site(0), Site(1, "attention")]
    assert [len(u) for u, _ in factors.values()] == [1, 2, 1]
    for site, (u, v) in again.low_rank().items():
        assert torch.equal(u, factors[site][0]) and torch.equal(v, factors[site][1])
    before = {site: tiny.W_out(site).clone() for site in factors}
    with again.applied(tiny):
        for site, (u, v) in factors.items():
            torch.testing.assert_close(tiny.W_out(site) - before[site], u.T @ v, rtol=1e-4, atol=1e-5)


def test_vectors_that_do_not_fit_W_O(tiny):
    with pytest.raises(ToxlocError, match="is for d_in=64, d_model=16; random-gpt2 has d_in=16"):
        TRNE([RankOne("0.attention", torch.ones(64), torch.ones(16))]).apply(tiny)
    with pytest.raises(ToxlocError, match="There is no layer 5, attention"):
        TRNE([RankOne("5.attention", torch.ones(16), torch.ones(16))]).apply(tiny)
    assert tiny.interventions == []


@pytest.mark.parametrize("sites", ["attention", pytest.param("all", marks=pytest.mark.slow)])
def test_a_fit_of_attentions_keeps_the_budget_and_raises_the_contrast(lm, pairs, neutral, sites):
    before = bits(lm)
    edit = TRNE.fit(lm, pairs, budget=0.01, neutral=neutral, sites=sites)
    assert same_bits(before, lm)
    parts = {"attention": {"attention"}, "all": {"mlp", "attention"}}[sites]
    assert {change.site.part for change in edit.edits} == parts
    assert len(edit.edits) == len(edit.record["editability"]) == 8 * len(parts)
    base, contrast_before = mean_nll(lm, neutral.tune), contrast(lm, pairs)
    with edit.applied(lm):
        rise = np.expm1(mean_nll(lm, neutral.tune) - base)
        assert contrast(lm, pairs) > contrast_before + 0.01
    assert 0.009 <= rise <= 0.01
    assert edit.record["tuned_perplexity_ratio"] == pytest.approx(1 + rise)
    assert sum(edit.record["share_of_cost"].values()) == pytest.approx(1)


def test_the_most_editable_sites_are_chosen_and_listed_sites_are_taken(tiny):
    every = TRNE.fit(tiny, PAIRS, norm=0.05, sites="all")
    sigma = every.record["editability"]
    assert set(sigma) == {"0", "1", "0.attention", "1.attention"}
    best = max(sigma, key=sigma.get)
    assert list(TRNE.fit(tiny, PAIRS, norm=0.05, sites="all", layers=1).record["editability"]) == [best]
    named = TRNE.fit(tiny, PAIRS, norm=0.05, layers=["1.attention", 0], emphasis={"1.attention": 0.5})
    assert [edit.site for edit in named.edits] == [Site(0), Site(1, "attention")]
    assert named.record["editability"]["1.attention"] == pytest.approx(0.5 * sigma["1.attention"], rel=1e-4)
    with pytest.raises(ToxlocError, match=r"layers=5 .* give 1 to 4"):
        TRNE.fit(tiny, PAIRS, norm=0.05, sites="all", layers=5)
