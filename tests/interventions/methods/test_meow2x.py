import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from benchmarks.families import DENSE, LAYOUTS
from tests.conftest import TEXTS, bits, random_model, same_bits
from toxloc import ContrastSet, Meow2X, NeutralText, ToxlocError, collect_contrast, load_intervention
from toxloc.evaluation.cost.perplexity import mean_nll
from toxloc.models import weights
from toxloc.models.batching import batches
from toxloc.models.sites import Site

PARTS = [dict(neurons=[(0, 3), (1, 0), (1, 11)], scale=0.25), dict(layers=[1], scale=0.5), dict(layers=[0], scale=0.0)]


def logits(lm):
    batch = next(batches(lm, TEXTS))
    with torch.no_grad():
        hooked = lm.forward(batch.ids, batch.mask)[batch.real]
        plain = lm.hf(input_ids=batch.ids, attention_mask=batch.mask).logits[batch.real]
    return hooked, plain


@pytest.mark.parametrize("parts", PARTS)
def test_hooked_equals_baked_on_both_trees(any_family, parts):
    lm = any_family
    untouched = logits(lm)[0]
    with Meow2X(**parts, mode="hooks").applied(lm):
        hooks = logits(lm)
    with Meow2X(**parts, mode="weights").applied(lm):
        weights = logits(lm)
    for other in (hooks[1], *weights):
        torch.testing.assert_close(hooks[0], other, rtol=1e-5, atol=1e-5)
    assert (hooks[0] - untouched).abs().max() > 1e-3


def test_a_scaled_neuron_is_multiplied_and_its_neighbours_are_not(tiny):
    seen = []
    with (
        Meow2X(neurons=[(1, 5)], scale=0.25).applied(tiny),
        tiny.hooked.hooks(fwd_hooks=[(tiny.at(1).keys_hook, lambda a, hook: seen.append(a))]),
    ):
        logits(tiny)
    tiny.hooked.hook_dict[tiny.at(1).keys_hook].add_hook(lambda a, hook: seen.append(a))
    logits(tiny)
    tiny.hooked.reset_hooks()
    before, after = seen[1], seen[0]
    torch.testing.assert_close(after[..., 5], 0.25 * before[..., 5])
    torch.testing.assert_close(after[..., :5], before[..., :5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["hooks", "weights"])
def test_weights_come_back_bit_for_bit_also_after_an_exception(mode, dtype):
    lm = random_model("llama", dtype=dtype)
    before = bits(lm)
    meow = Meow2X(layers=[0], neurons=[(1, 2)], scale=0.3, mode=mode)
    with pytest.raises(KeyboardInterrupt), meow.applied(lm):
        assert same_bits(before, lm) == (mode == "hooks")
        raise KeyboardInterrupt
    assert same_bits(before, lm)
    assert lm.interventions == []
    assert all(not point.fwd_hooks for point in lm.hooked.hook_dict.values())
    assert not any(lm.down_projection(i)._forward_pre_hooks for i in range(lm.n_layers))


def test_a_failure_while_applying_leaves_nothing_behind(tiny, monkeypatch):
    before, real, calls = bits(tiny), weights.overwrite, []

    def overwrite(*args):
        calls.append(1)
        return real(*args) if len(calls) < 4 else 1 / 0

    monkeypatch.setattr(weights, "overwrite", overwrite)
    with pytest.raises(ZeroDivisionError):
        Meow2X(layers=[0, "1.attention", 1], mode="weights").apply(tiny)
    assert len(calls) == 4  # W_out and b_out, then W_O, then its bias
    assert same_bits(before, tiny)
    assert tiny.interventions == []


def test_a_scale_of_one_changes_nothing(tiny):
    before = logits(tiny)[0]
    with Meow2X(layers=[0], neurons=[(1, 1)], scale=1.0).applied(tiny):
        torch.testing.assert_close(logits(tiny)[0], before)


def test_save_and_load(tiny, tmp_path):
    meow = Meow2X(layers=[1], neurons=[(0, 5), (1, 2)], scale=0.125, mode="weights")
    meow.save(tmp_path / "m")
    again = load_intervention(tmp_path / "m")
    assert isinstance(again, Meow2X)
    assert again.config() == meow.config()
    assert again.neurons == meow.neurons
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["intervention.json", "tensors.safetensors"]


@pytest.mark.parametrize(("family", "sites"), [("gpt2", "mlp"), ("gpt2", "attention"), ("llama", "attention")])
def test_the_graded_scale_of_every_unit_has_the_second_order_cost_by_hand(family, sites):
    """The cost is tr(C_uu W_u S W_uᵀ): for a neuron j, C_jj w_j S w_jᵀ."""
    lm, pairs = random_model(family), ContrastSet(TEXTS[:2], TEXTS[2:])
    s = collect_contrast(lm, pairs, curvature=True, sites=lm.sites(sites))
    neutral = NeutralText(pairs.neutral, TEXTS[2:], TEXTS[:1])
    meow = Meow2X.fit(lm, pairs, sites=sites, scale="graded", statistics=s, budget={"kl": 1e-5}, neutral=neutral)
    partial = {unit: scale for unit, scale in meow.units.items() if scale > 0}
    assert partial
    for (site, unit), scale in partial.items():
        rows = lm.at(site).rows(unit)
        W, G = (t[rows].double().numpy() for t in (lm.W_out(site), s.G(site)))
        cost = np.trace(s.C[site][rows, rows].double().numpy() @ W @ s.S[site].double().numpy() @ W.T)
        assert (1 - scale) * cost == pytest.approx(meow.record["strength"] * -(G * W).sum(), rel=1e-3)


@pytest.mark.parametrize("scale", ["graded", 0.5])
def test_a_unit_that_writes_nothing_is_left_out(tiny, scale):
    for layer in range(tiny.n_layers):
        tiny.W_out(layer)[5].zero_()
    neutral = NeutralText(TEXTS[2:], TEXTS[2:], TEXTS[:1])
    meow = Meow2X.fit(tiny, ContrastSet(TEXTS[:2], TEXTS[2:]), scale=scale, neutral=neutral, budget={"kl": 1.0})
    assert len(meow.neurons) > 5
    assert 5 not in {j for _, j in meow.neurons}


def test_fit_keeps_the_budget_and_takes_only_neurons_that_carry_toxicity(lm, pairs, neutral):
    before = bits(lm)
    s = collect_contrast(lm, pairs, curvature=True, more_neutral=neutral.fit)
    meow = Meow2X.fit(lm, pairs, budget=0.02, neutral=neutral, statistics=s)
    assert same_bits(before, lm)
    base = mean_nll(lm, neutral.tune)
    with meow.applied(lm):
        rise = np.expm1(mean_nll(lm, neutral.tune) - base)
    assert 0.01 <= rise <= 0.02
    assert meow.record["tuned_perplexity_ratio"] == pytest.approx(1 + rise, rel=1e-6)
    for layer, j in meow.neurons:
        assert -(s.G(layer)[j] @ lm.W_out(layer)[j]) > 0
    assert meow.fitted_on["fingerprint"] == lm.fingerprint


@pytest.mark.parametrize("score", ["combined", "auroc"])
def test_fit_gathers_what_its_score_needs(tiny, score):
    meow = Meow2X.fit(
        tiny,
        ContrastSet(TEXTS[:2], TEXTS[2:4]),
        budget=0.5,
        score=score,
        neutral=NeutralText(TEXTS[:1], TEXTS[3:], TEXTS[2:3]),
    )
    assert meow.record["score"] == score
    assert meow.neurons


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(), "needs layers= or neurons="),
        (dict(layers=[0], scale=1.5), "not 1.5"),
        (dict(layers=[0], mode="sideways"), "Unknown mode 'sideways'"),
        (dict(neurons=[(0, 1)], scale=[0.5, 0.1]), "2 scales were given for 1 neurons"),
        (dict(layers=[0], scale=[0.5]), "1 scales were given for 0 neurons and 1 layers"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ToxlocError, match=words):
        Meow2X(**arguments)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (dict(layers=[2]), "There is no layer 2 in random-gpt2; it has layers 0 to 1"),
        (dict(neurons=[(0, 64)]), "There is no neuron 64 in layer 0 of random-gpt2; it has neurons 0 to 63"),
    ],
)
def test_parts_that_are_not_in_the_model(tiny, parts, words):
    with pytest.raises(ToxlocError, match=words):
        Meow2X(**parts).apply(tiny)
    assert tiny.interventions == []


def test_neurons_with_separate_scales_are_scaled_and_saved(tiny, tmp_path):
    meow = Meow2X(neurons=[(0, 3), (1, 5)], scale=[0.25, 0.75])
    rows = tiny.W_out(0)[3].clone(), tiny.W_out(1)[5].clone()
    with meow.baked().applied(tiny):
        torch.testing.assert_close(tiny.W_out(0)[3], 0.25 * rows[0])
        torch.testing.assert_close(tiny.W_out(1)[5], 0.75 * rows[1])
    meow.save(tmp_path / "m")
    again = load_intervention(tmp_path / "m")
    assert again.neurons == {(0, 3): 0.25, (1, 5): 0.75}
    with meow.applied(tiny):
        expected = logits(tiny)
    with again.baked().applied(tiny):
        for actual in logits(tiny):
            torch.testing.assert_close(actual, expected[0], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        dict(scale="graded"),
        dict(scale="graded", per_cost=False),
        dict(scale="auto"),
        dict(parts="layers"),
        dict(parts="layers", k=3),
    ],
)
def test_every_form_keeps_its_budget(lm, pairs, neutral, options):
    before = bits(lm)
    s = collect_contrast(lm, pairs, curvature=True, more_neutral=neutral.fit)
    meow = Meow2X.fit(lm, pairs, budget=0.02, neutral=neutral, statistics=s, **options)
    assert same_bits(before, lm)
    base = mean_nll(lm, neutral.tune)
    with meow.applied(lm):
        spent = np.expm1(mean_nll(lm, neutral.tune) - base)
        assert spent <= 0.02
        # Without costs, the perplexity falls, then rises steeply; five evaluations need not meet the rise.
        assert spent >= 0.01 or options == {"scale": "graded", "per_cost": False}
    if options.get("scale") == "auto":
        gains = {}
        for scale in (0.0, 0.25, 0.5, 0.75):
            single = Meow2X.fit(lm, pairs, budget=0.02, neutral=neutral, statistics=s, scale=scale)
            gains[scale] = sum(
                -(1 - scale) * (s.G(layer)[j] @ lm.W_out(layer)[j]).item() for layer, j in single.neurons
            )
        assert meow.scale == max(gains, key=gains.get)
    if "parts" in options:
        assert 1 <= len(meow.layers) <= options.get("k", 1) and not meow.neurons


def test_the_graded_form_gains_most_at_its_second_order_cost():
    """Compare with a numerical search over all scales in [0, 1] of at most the same cost."""
    rng = np.random.default_rng(0)
    value, cost = rng.uniform(0.1, 1, 6), rng.uniform(0.1, 1, 6)
    off = np.minimum(1, 0.7 * value / cost)  # 1 - scale
    search = minimize(
        lambda x: -(x @ value),
        np.full(6, 0.1),
        bounds=[(0, 1)] * 6,
        method="SLSQP",
        constraints={"type": "ineq", "fun": lambda x: (off**2 * cost).sum() - (x**2 * cost).sum()},
    )
    assert off @ value == pytest.approx(-search.fun, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(parts="heads"), "parts='heads': it must be 'neurons' or 'layers'"),
        (dict(scale="half"), "scale.*='half'"),
        (dict(scale=1.5), "not 1.5"),
        (dict(sites="heads"), "sites='heads': it must be 'mlp', 'attention' or 'all'"),
        (dict(strength=1.0), "There is no setting 'strength'"),
        (dict(budget=None), "budget=None is not a budget"),
    ],
)
def test_bad_arguments_of_fit(tiny, options, words):
    with pytest.raises(ToxlocError, match=words):
        Meow2X.fit(tiny, ContrastSet(TEXTS[:2], TEXTS[2:]), **options)


# Attentions and heads

HEADS = [
    dict(neurons=[("0.attention", 1), ("1.attention", 0)], scale=[0.25, 0.0]),
    dict(layers=["1.attention"], scale=0.5),
    dict(layers=["0.attention"], scale=0.0),
    dict(layers=[0, "1.attention"], neurons=[("0.attention", 1), (1, 5)], scale=0.25),
]


@pytest.mark.parametrize("parts", HEADS)
def test_attentions_hooked_equal_baked_on_both_trees(any_family, parts):
    lm = any_family
    untouched, before = logits(lm)[0], bits(lm)
    with Meow2X(**parts, mode="hooks").applied(lm):
        assert same_bits(before, lm)
        hooks = logits(lm)
    with Meow2X(**parts, mode="hooks").baked().applied(lm):
        assert not same_bits(before, lm)
        weights = logits(lm)
    for other in (hooks[1], *weights):
        torch.testing.assert_close(hooks[0], other, rtol=1e-5, atol=1e-5)
    assert (hooks[0] - untouched).abs().max() > 1e-3
    assert same_bits(before, lm)


@pytest.mark.parametrize("family", sorted(set(DENSE) - set(LAYOUTS)))
def test_heads_hooked_equal_baked_in_every_other_family(family):
    lm = random_model(family)
    untouched = logits(lm)[0]
    meow = Meow2X(neurons=[("0.attention", 1)], scale=0.0)
    with meow.applied(lm):
        hooks = logits(lm)
    with meow.baked().applied(lm):
        weights = logits(lm)
    for other in (hooks[1], *weights):
        torch.testing.assert_close(hooks[0], other, rtol=1e-5, atol=1e-5)
    assert (hooks[0] - untouched).abs().max() > 1e-3


def test_a_head_is_a_block_of_the_keys_and_of_the_rows_of_W_O(any_family):
    lm, site = any_family, Site(1, "attention")
    width = lm.at(site).d_in // 2
    weight = lm.down_projection(site).weight.clone()
    rows = weight if lm.model_type == "gpt2" else weight.T
    seen = []
    with Meow2X(neurons=[(site, 1)], scale=0.25).baked().applied(lm):
        after = lm.down_projection(site).weight if lm.model_type == "gpt2" else lm.down_projection(site).weight.T
        torch.testing.assert_close(after[width:], 0.25 * rows[width:])
        assert torch.equal(after[:width], rows[:width])
    with Meow2X(neurons=[(site, 1)], scale=0.25).applied(lm):
        handle = lm.down_projection(site).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        logits(lm)
        handle.remove()
    handle = lm.down_projection(site).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    logits(lm)
    handle.remove()
    torch.testing.assert_close(seen[0][..., width:], 0.25 * seen[1][..., width:])
    torch.testing.assert_close(seen[0][..., :width], seen[1][..., :width])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", ["hooks", "weights"])
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_attentions_come_back_bit_for_bit_after_an_exception(family, mode, dtype):
    lm = random_model(family, dtype=dtype)
    before = bits(lm)
    meow = Meow2X(layers=["0.attention"], neurons=[("1.attention", 1)], scale=0.3, mode=mode)
    with pytest.raises(KeyboardInterrupt), meow.applied(lm):
        assert same_bits(before, lm) == (mode == "hooks")
        raise KeyboardInterrupt
    assert same_bits(before, lm)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.hf.modules())


def test_neurons_and_heads_are_kept_separate_also_on_disk(tiny, tmp_path):
    meow = Meow2X(layers=[1, "0.attention"], neurons=[(0, 5), ("1.attention", 1)], scale=0.125)
    assert (meow.layers, meow.neurons, meow.heads) == ([1], {(0, 5): 0.125}, {(1, 1): 0.125})
    assert meow.sites == [Site(0, "attention"), Site(1)]
    assert repr(meow) == "Meow2X(layers=[1], attentions=[0], 1 neurons, 1 heads, scale=0.125, mode='hooks')"
    meow.save(tmp_path / "m")
    again = load_intervention(tmp_path / "m")
    assert (again.sites, again.units) == (meow.sites, meow.units)
    assert again.config() == {
        "layers": [1],
        "n_neurons": 1,
        "scale": 0.125,
        "mode": "hooks",
        "sites": ["0.attention"],
        "n_heads": 1,
    }


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (dict(layers=["2.attention"]), "There is no layer 2, attention in random-gpt2"),
        (dict(neurons=[("0.attention", 2)]), "no head 2 in layer 0, attention of random-gpt2; it has heads 0 to 1"),
        (dict(neurons=[("0.attention", -1)]), "There is no head -1"),
    ],
)
def test_attentions_and_heads_that_are_not_in_the_model(tiny, parts, words):
    with pytest.raises(ToxlocError, match=words):
        Meow2X(**parts).apply(tiny)
    assert tiny.interventions == []


@pytest.mark.parametrize("options", [dict(scale="graded")])
def test_fitted_heads_keep_the_budget_and_carry_toxicity(lm, pairs, neutral, options):
    before = bits(lm)
    meow = Meow2X.fit(lm, pairs, budget=0.02, neutral=neutral, sites="attention", **options)
    assert same_bits(before, lm)
    assert not meow.neurons and not meow.layers
    s = collect_contrast(lm, pairs, sites=lm.sites("attention"))
    for site, head in meow.units:
        rows = lm.at(site).rows(head)
        assert -(s.G(site)[rows] * lm.W_out(site)[rows]).sum() > 0
    assert len(meow.units) == meow.record["n_neurons"]
    base = mean_nll(lm, neutral.tune)
    with meow.applied(lm):
        rise = np.expm1(mean_nll(lm, neutral.tune) - base)
    assert 0 < rise <= 0.02
    assert meow.record["tuned_perplexity_ratio"] == pytest.approx(1 + rise, rel=1e-6)


def test_all_sites_are_ranked_together(tiny):
    pairs = ContrastSet(TEXTS[:2], TEXTS[2:])
    neutral = NeutralText(pairs.neutral, TEXTS[2:], TEXTS[:1])
    meow = Meow2X.fit(tiny, pairs, neutral=neutral, sites="all", scale="graded", budget={"kl": 0.01})
    s = collect_contrast(tiny, pairs, curvature=True, sites=tiny.sites())
    strength = meow.record["strength"]
    assert meow.neurons and meow.heads
    for site, unit in [*list(meow.units)[:3], *[key for key in meow.units if key[0].part == "attention"]]:
        rows = tiny.at(site).rows(unit)
        W, G = (t[rows].double().numpy() for t in (tiny.W_out(site), s.G(site)))
        cost = np.trace(s.C[site][rows, rows].double().numpy() @ W @ s.S[site].double().numpy() @ W.T)
        assert meow.units[site, unit] == pytest.approx(1 - min(1, strength * -(G * W).sum() / cost), abs=1e-3)
