import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import toxloc.models.batching
from benchmarks.families import random_hf, tokenizer
from tests.conftest import bits, random_model, same_bits
from tests.localization.by_hand import ids_of
from tests.localization.prefixes_by_hand import PAIRS, USABLE, difference_of, prefix_and_tokens
from tests.tensors import alive_before_each_batch
from toxloc import ContrastSet, Meow2X, ToxlocError, localize, patch
from toxloc.causal.replacement import replaced_parts
from toxloc.localization.activation import read_means
from toxloc.localization.text_statistics import collect
from toxloc.models.batching import encode_rows
from toxloc.models.loaded import LoadedModel
from toxloc.models.sites import Site

from .patching_by_hand import HEAD, NEURON, logits_with, mean_log_p, new_values, others, outputs_of


def effect_at_first_difference(lm, by, part):
    """Return the effect on every usable pair, and D."""
    effects, differences = [], []
    for i, other in zip(USABLE, others(lm), strict=True):
        ids, toxic, neutral = prefix_and_tokens(lm, i)
        with torch.no_grad():
            intact = difference_of(lm.hf(input_ids=ids).logits[0, -1], toxic, neutral).item()
        values = new_values(lm, by, part, ids, prefix_and_tokens(lm, USABLE[other])[0])
        logits = logits_with(lm, ids, part, slice(1, None), values)
        effects.append(intact - difference_of(logits[-1], toxic, neutral).item())
        differences.append(intact)
    return effects, np.mean(differences)


def effect_over_endings(lm, by, part):
    effects = []
    for i, other in zip(USABLE, others(lm, "ending"), strict=True):
        begin = prefix_and_tokens(lm, i)[0].shape[1]
        both = [ids_of(lm, side[i]) for side in (PAIRS.toxic, PAIRS.neutral)]
        log_p = []
        for k, side in enumerate((PAIRS.toxic, PAIRS.neutral)):
            ids = both[k]
            with torch.no_grad():
                intact = mean_log_p(lm.hf(input_ids=ids).logits[0], ids, begin)
            if by == "counterfactual":
                end = min(x.shape[1] for x in both)
                positions, values = slice(begin, end), outputs_of(lm, both[1 - k], part)[begin:end]
            else:
                positions = slice(1, None)
                values = new_values(lm, by, part, ids, ids_of(lm, side[USABLE[other]]))
            log_p.append(intact - mean_log_p(logits_with(lm, ids, part, positions, values), ids, begin))
        effects.append(log_p[0] - log_p[1])
    return effects


@pytest.mark.parametrize("by", ["mean", "zero", "resample"])
def test_the_effect_at_the_first_difference_by_hand(any_family, by):
    """Of sites (after the norm that follows them in some families), neurons and heads."""
    lm = any_family
    for parts in (lm.sites(), [NEURON, HEAD]):
        result = patch(lm, PAIRS, parts, by, draws=0)
        assert (result.parts, result.by, result.over) == (tuple(parts), by, "first")
        assert (result.n_pairs, result.n_left_out, result.uncertainty) == (4, 1, None)
        for part, effect in zip(parts, result.effect, strict=True):
            expected, difference = effect_at_first_difference(lm, by, part)
            assert effect == pytest.approx(np.mean(expected), rel=2e-3, abs=2e-4), part
        assert result.difference == pytest.approx(difference, rel=1e-3)


@pytest.mark.parametrize("by", ["mean", "zero", "resample", "counterfactual"])
def test_the_effect_over_the_endings_by_hand(tiny, by):
    for parts in (tiny.sites(), [NEURON, HEAD]):
        result = patch(tiny, PAIRS, parts, by, over="ending", draws=0)
        for part, effect in zip(parts, result.effect, strict=True):
            assert effect == pytest.approx(np.mean(effect_over_endings(tiny, by, part)), rel=2e-3, abs=2e-4), part


def test_counterfactuals_are_over_the_endings(tiny):
    default, chosen = (patch(tiny, PAIRS, [0, 1], "counterfactual", over=over, draws=0) for over in (None, "ending"))
    assert default.over == "ending"
    np.testing.assert_array_equal(default.effect, chosen.effect)
    with pytest.raises(ToxlocError, match="no effect at the first difference"):
        patch(tiny, PAIRS, [0], "counterfactual", over="first")


@pytest.mark.parametrize("by", ["mean", "zero", "resample", "counterfactual"])
@pytest.mark.parametrize("over", ["first", "ending"])
def test_swapping_the_two_sides_changes_the_sign(tiny, by, over):
    """The mean is over the neutral texts, so the two sides have the same texts in another order here."""
    if (by, over) == ("counterfactual", "first"):
        return
    texts = [PAIRS.toxic[i] for i in USABLE], [PAIRS.neutral[i] for i in USABLE]
    pairs = ContrastSet(texts[0] + texts[1], texts[1] + texts[0], paired=True)
    whole = patch(tiny, pairs, tiny.sites(), by, over=over, draws=0)
    if by != "resample":  # which draws another text for either half
        np.testing.assert_allclose(whole.effect, 0, atol=1e-5)
    assert whole.difference == pytest.approx(0, abs=1e-5)
    assert whole.n_pairs == 2 * len(USABLE)


def test_without_the_first_position_left_out_it_is_replaced_too(tiny):
    ids, toxic, neutral = prefix_and_tokens(tiny, 0)
    pair = ContrastSet([PAIRS.toxic[0]] * 2, [PAIRS.neutral[0]] * 2, paired=True)
    with torch.no_grad():
        intact = difference_of(tiny.hf(input_ids=ids).logits[0, -1], toxic, neutral)
    logits = logits_with(tiny, ids, Site(0), slice(None), torch.zeros(ids.shape[1], tiny.d_model))
    expected = (intact - difference_of(logits[-1], toxic, neutral)).item()
    result = patch(tiny, pair, [0], "zero", skip_first=False, draws=0)
    assert result.effect[0] == pytest.approx(expected, rel=1e-3)
    assert abs(patch(tiny, pair, [0], "zero", draws=0).effect[0] - expected) > 1e-3


def test_the_p_value_counts_sign_flips_and_the_interval_holds_the_effect(tiny):
    """With few pairs, each is a group by itself; all sign patterns can be counted by hand."""
    part = Site(0)
    values, _ = effect_at_first_difference(tiny, "mean", part)
    result = patch(tiny, PAIRS, [part], "mean", draws=20_000)
    flips = np.array([np.dot(signs, values) / 4 for signs in itertools.product((1, -1), repeat=4)])
    expected = np.mean(np.abs(flips) >= abs(np.mean(values)) - 1e-6)
    assert result.uncertainty.p[0] == pytest.approx(expected, abs=0.02)
    assert result.uncertainty.p_adjusted[0] == pytest.approx(expected, abs=0.02)
    assert result.uncertainty.null_sd[0] == pytest.approx(np.sqrt(np.mean(flips**2)), rel=0.03)
    assert result.uncertainty.null_mean[0] == pytest.approx(0, abs=0.05 * np.abs(values).max())
    assert result.uncertainty.low[0] < result.effect[0] < result.uncertainty.high[0]


def test_more_parts_raise_the_adjusted_p_only(tiny):
    alone = patch(tiny, PAIRS, [0], draws=300).uncertainty
    together = patch(tiny, PAIRS, tiny.sites(), draws=300)
    assert together.parts[0] == Site(0)
    assert together.uncertainty.p[0] == alone.p[0]
    assert together.uncertainty.p_adjusted[0] >= alone.p_adjusted[0]
    table = together.table()
    assert table.p_adjusted.tolist() == together.uncertainty.p_adjusted.tolist()
    assert table.part.tolist() == [site.part for site in tiny.sites()]
    assert patch(tiny, PAIRS, [HEAD], draws=0).table()[["layer", "part", "unit"]].values.tolist() == [
        [1, "attention", 1]
    ]


@pytest.mark.parametrize("by", ["mean", "resample", "counterfactual"])
def test_batches_do_not_change_the_result_and_the_model_is_unchanged(tiny, monkeypatch, by):
    before = bits(tiny)
    whole = patch(tiny, PAIRS, tiny.sites(), by, draws=0)
    monkeypatch.setitem(toxloc.models.batching.TOKENS_PER_BATCH, "cpu", 1)
    single = patch(tiny, PAIRS, tiny.sites(), by, draws=0)
    np.testing.assert_allclose(single.effect, whole.effect, rtol=1e-3, atol=1e-5)
    assert same_bits(before, tiny)
    assert patch(tiny, PAIRS, [0], draws=0).difference == pytest.approx(
        effect_at_first_difference(tiny, by, Site(0))[1]
    )


@pytest.mark.parametrize("by", ["counterfactual"])  # the most rows per pair
def test_memory_does_not_grow_with_the_number_of_pairs(tiny, monkeypatch, by):
    """All tensors together take as many bytes at the last batch as at the third."""
    alive = alive_before_each_batch(monkeypatch)
    pairs = ContrastSet(["You are a fool"] * 5, ["You are a friend"] * 5, paired=True)
    patch(tiny, pairs, tiny.sites(), by, draws=0)
    assert len(alive) == 5
    assert alive[-1] == alive[2]


def test_the_seed_chooses_the_other_pairs(tiny):
    for seed in range(4):
        assert all(other != i for i, other in enumerate(others(tiny, seed=seed)))
    effects = {float(patch(tiny, PAIRS, [0], "resample", seed=seed, draws=0).effect[0]) for seed in (0, 0, 1, 2, 3)}
    assert 1 < len(effects) < 5


def test_patching_agrees_with_the_score_for_small_changes():
    """In a model that is nearly linear there, the first-order estimate equals the exact effect."""
    lm = random_model("gpt2", scale=0.5)
    sites = lm.sites("mlp", "attention")
    exact = patch(lm, PAIRS, sites, draws=0).effect
    loc = localize(lm, PAIRS, ("counterfactual",), parts=("mlp", "attention"), draws=0)
    estimate = [loc.site_scores("counterfactual")[site] for site in sites]
    assert np.abs(exact).max() > 1e-6
    np.testing.assert_allclose(estimate, exact, rtol=0.1, atol=np.abs(exact).max() / 20)


def test_a_model_without_transformerlens_gives_the_same(tiny):
    modules = LoadedModel.from_hf(random_hf("gpt2"), tokenizer(), "modules", hooks="modules")
    for by in ("mean", "counterfactual"):
        a, b = (patch(lm, PAIRS, tiny.sites(), by, draws=0).effect for lm in (tiny, modules))
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_an_applied_intervention_counts(tiny):
    """A layer that is scaled to 0 has no effect by zero."""
    with Meow2X(layers=[1], scale=0.0).applied(tiny):
        assert patch(tiny, PAIRS, [1], "zero", draws=0).effect[0] == pytest.approx(0, abs=1e-6)
        assert patch(tiny, PAIRS, [1], "mean", draws=0).effect[0] == pytest.approx(0, abs=1e-6)
    assert abs(patch(tiny, PAIRS, [1], "zero", draws=0).effect[0]) > 1e-3


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "llama4_text", "jetmoe"])
def test_a_removed_expert_is_one_scaled_to_zero(family):
    lm = random_model(family)
    site = lm.sites("expert")[1]
    result = patch(lm, PAIRS, [site], "zero", skip_first=False, draws=0)
    with Meow2X(layers=[site], scale=0.0).applied(lm):
        without = patch(lm, PAIRS, [lm.sites()[0]], "zero", draws=0).difference
    assert result.difference - result.effect[0] == pytest.approx(without, rel=1e-4, abs=1e-5)
    assert abs(result.effect[0]) > 1e-6


def share_of(block, x, expert):
    """Return the tokens of x [tokens, d_model] that Mixtral routes to an expert, and its share of their output."""
    weights, index = (x @ block.gate.weight.T).softmax(-1).topk(2)
    weights = weights / weights.sum(-1, keepdim=True)
    tokens, slot = torch.where(index == expert)
    gate, up = (x[tokens] @ block.experts.gate_up_proj[expert].T).chunk(2, -1)
    return tokens, weights[tokens, slot][:, None] * ((F.silu(gate) * up) @ block.experts.down_proj[expert].T)


def test_the_mean_of_an_expert_by_hand():
    """The mean is over the neutral tokens that are routed to the expert, and replaces its share of the output."""
    lm = random_model("mixtral")
    for site in lm.sites("expert")[:4]:
        block, shares = lm.at(site).sum_module, []

        def keep(module, args, out, shares=shares, site=site):
            tokens, share = share_of(module, args[0].flatten(0, -2), site.expert)
            shares.append(share[tokens > 0])

        handle = block.register_forward_hook(keep)
        with torch.no_grad():
            for text in PAIRS.neutral:
                lm.hf(input_ids=ids_of(lm, text))
        handle.remove()
        mean, effects = torch.cat(shares).mean(0), []

        def replace(module, args, out, mean=mean, site=site):
            tokens, share = share_of(module, args[0].flatten(0, -2), site.expert)
            new = out.clone().flatten(0, -2)
            new[tokens[tokens > 0]] += (mean - share)[tokens > 0]
            return new.view_as(out)

        for i in USABLE:
            ids, toxic, neutral = prefix_and_tokens(lm, i)
            with torch.no_grad():
                intact = difference_of(lm.hf(input_ids=ids).logits[0, -1], toxic, neutral).item()
                handle = block.register_forward_hook(replace)
                effects.append(intact - difference_of(lm.hf(input_ids=ids).logits[0, -1], toxic, neutral).item())
                handle.remove()
        assert patch(lm, PAIRS, [site], draws=0).effect[0] == pytest.approx(np.mean(effects), rel=2e-3, abs=1e-4)


@pytest.mark.parametrize("family", ["gpt_oss", "llama4_text", "jetmoe"])
def test_the_mean_of_experts_in_every_layout(family):
    """The mean is that of the outputs from which scores are computed."""
    lm = random_model(family)
    sites = lm.sites("expert")
    parts = replaced_parts(lm, sites, "mean")
    rows = encode_rows(lm, PAIRS.neutral, 128)
    read_means(lm, [part.activation for part in parts], rows, skip_first=True)
    s = collect(lm, PAIRS.neutral, sites=sites, gradients=False)
    for part in parts:
        site = part.part
        outputs = s.contributions.outputs[site].sum(0) / max(1, s.routed[site])
        torch.testing.assert_close(part.activation.constant, outputs.float(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "median"}, "by='median': choose one of mean, counterfactual, resample, zero"),
        ({"over": "all"}, "over='all': choose one of first, ending"),
        ({"sites": []}, "Give either layers"),
        ({"sites": [9]}, "There is no layer 9"),
        ({"sites": [(0, 99)]}, "There is no neuron 99"),
        ({"draws": -1}, "draws=-1"),
        ({"pairs": ContrastSet(PAIRS.toxic, PAIRS.neutral)}, "is not paired"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_mistakes_end_in_a_sentence(tiny, options, message):
    arguments = {"pairs": PAIRS, "sites": [0], **options}
    with pytest.raises(ToxlocError, match=message):
        patch(tiny, **arguments)


def test_what_experts_cannot_do_is_said():
    lm = random_model("mixtral")
    expert = Site(1, "expert", 2)
    with pytest.raises(ToxlocError, match=r"layer 1, expert 2 is an expert .* by='mean' or by='zero'"):
        patch(lm, PAIRS, [expert], "resample")
    with pytest.raises(ToxlocError, match="patch the expert as a whole"):
        patch(lm, PAIRS, [(expert, 3)])
