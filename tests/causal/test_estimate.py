"""Estimates are compared with slopes of D in the plain Hugging Face model in float64, from finite differences."""

from functools import cache

import numpy as np
import pytest
import torch

import toxloc.models.batching
from benchmarks.families import random_hf, tokenizer
from tests.conftest import bits, random_model, same_bits
from tests.localization.by_hand import ids_of, rows_of
from tests.localization.prefixes_by_hand import PAIRS, USABLE, difference_of, prefix_and_tokens
from tests.tensors import alive_before_each_batch
from toxloc import ContrastSet, Meow2X, ToxlocError, patch
from toxloc.localization.difference_statistics import collect_differences
from toxloc.localization.first_difference import first_differences, first_differences_of
from toxloc.models.loaded import LoadedModel
from toxloc.models.sites import BySite, Site

from .patching_by_hand import HEAD, NEURON, mean_log_p, mean_of, others, outputs_of, placed

STEP = 2e-3  # smaller steps lose precision in families that compute their norms in float32
GIVEN = {
    "prompts": ["They hate you. You are", "She hates him. He is", "People hate him. He is"],
    "toxic_words": [" stupid", " an idiot", " a liar"],
    "neutral_words": [" here", " the baker", " nice"],
    "counterfactual_prompts": ["They like you. You are", "She likes him. He is", "People love him. He is"],
}


@cache
def exact_model(family):
    """The same random model in float64."""
    return LoadedModel.from_hf(random_hf(family, dtype=torch.float64), tokenizer(), f"{family}-64")


def texts_of_pair(lm, i, other, by, over):
    """Yield, for each text of a pair: sign, ids, ids of the other text, replaced positions, and D from the logits."""
    prefix, toxic, neutral = prefix_and_tokens(lm, i)
    begin = prefix.shape[1]
    if over == "first":
        donor = prefix_and_tokens(lm, other)[0]
        yield 1, prefix, donor, slice(1, begin), lambda logits: difference_of(logits[-1], toxic, neutral).item()
        return
    both = [ids_of(lm, side[i]) for side in (PAIRS.toxic, PAIRS.neutral)]
    for k, side in enumerate((PAIRS.toxic, PAIRS.neutral)):
        ids = both[k]
        if by == "counterfactual":
            donor, positions = both[1 - k], slice(begin, min(x.shape[1] for x in both))
        else:
            donor, positions = ids_of(lm, side[other]), slice(1, ids.shape[1])
        yield (-1) ** k, ids, donor, positions, lambda logits, ids=ids: mean_log_p(logits, ids, begin)


def new_for(by, own, donor, mean, positions):
    """Return the new values of the positions [n, d]."""
    if by in ("zero", "mean"):
        return (mean if by == "mean" else torch.zeros_like(own[0])).expand(positions.stop - positions.start, -1)
    return torch.stack([donor[min(t, len(donor) - 1)] for t in range(positions.start, positions.stop)])


def slope(lm, part, embedded, positions, direction, value):
    """Return the slope of D as the part's values move in a direction, at an input of given embeddings."""

    def at(size):
        def change(x):
            new = x.clone()
            new[positions] += size * direction
            return new

        handle = placed(lm, part, change)
        with torch.no_grad():
            logits = lm.hf(inputs_embeds=embedded[None]).logits[0]
        handle.remove()
        return value(logits)

    near, far = (at(size) - at(-size) for size in (STEP, 2 * STEP))
    return (8 * near - far) / (12 * STEP)


@cache
def means_of(lm, part):
    """Return the means of a part and of the token embeddings over the neutral texts."""
    with torch.no_grad():
        embedded = [lm.hf.get_input_embeddings()(ids_of(lm, text))[0, 1:] for text in PAIRS.neutral]
    return mean_of(lm, part), torch.cat(embedded).mean(0)


def effect_of(lm, part, by, texts, steps=0):
    """Return the estimate for one pair."""
    table, effect = lm.hf.get_input_embeddings(), 0.0
    mean, mean_embedded = means_of(lm, part) if by == "mean" else (None, None)
    for sign, ids, donor_ids, positions, value in texts:
        with torch.no_grad():
            embedded, donor_embedded = table(ids)[0], table(donor_ids)[0]
        own, donor = outputs_of(lm, ids, part), outputs_of(lm, donor_ids, part)
        direction = own[positions] - new_for(by, own, donor, mean, positions)
        other_input = embedded.clone()
        other_input[positions] = new_for(by, embedded, donor_embedded, mean_embedded, positions)
        for alpha in [(k + 0.5) / steps for k in range(steps)] or [1.0]:
            at = other_input + alpha * (embedded - other_input)
            effect += sign * slope(lm, part, at, positions, direction, value) / max(1, steps)
    return effect


def estimate_by_hand(lm, part, by, over, steps=0):
    effects = [
        effect_of(lm, part, by, texts_of_pair(lm, i, USABLE[other], by, over), steps)
        for i, other in zip(USABLE, others(lm, over), strict=True)
    ]
    return np.mean(effects)


def check(lm, reference, parts, by, over, method="attribution", steps=0):
    result = patch(lm, PAIRS, parts, by, method=method, over=over, steps=max(1, steps), draws=0)
    assert (result.parts, result.by, result.method, result.over) == (tuple(parts), by, method, over)
    assert (result.n_pairs, result.n_left_out) == (4, 1)
    expected = [estimate_by_hand(reference, part, by, over, steps) for part in parts]
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(result.effect, expected, rtol=3e-3, atol=2e-4)
    return result


def test_attributions_are_slopes_in_every_layout(any_family):
    """Of sites, after the norm that follows them in some families, and of neurons and heads."""
    for parts in (any_family.sites(), [NEURON, HEAD]):
        check(any_family, exact_model(any_family.model_type), parts, "mean", "first")


@pytest.mark.parametrize("by", ["zero", "resample"])
def test_attributions_are_slopes_at_the_first_difference(tiny, by):
    result = check(tiny, exact_model("gpt2"), tiny.sites(), by, "first")
    units = check(tiny, exact_model("gpt2"), [NEURON, HEAD], by, "first")
    for (site, unit), effect in zip(units.parts, units.effect, strict=True):
        assert result.units[site][unit] == pytest.approx(effect, rel=1e-3, abs=1e-6)
    assert result.difference == pytest.approx(patch(tiny, PAIRS, [0], draws=0).difference, rel=1e-4)


@pytest.mark.parametrize("by", ["mean", "zero", "resample", "counterfactual"])
def test_attributions_are_slopes_over_the_endings(tiny, by):
    for parts in (tiny.sites(), [NEURON, HEAD]):
        check(tiny, exact_model("gpt2"), parts, by, "ending")


@pytest.mark.parametrize(
    ("by", "over"),
    [("mean", "first"), ("zero", "first"), ("resample", "first"), ("resample", "ending"), ("counterfactual", "ending")],
)
def test_integrated_gradients_are_means_of_slopes_between_two_inputs(tiny, by, over):
    for parts in (tiny.sites(), [NEURON, HEAD]):
        check(tiny, exact_model("gpt2"), parts, by, over, "integrated", steps=3)


@pytest.mark.parametrize("family", ["gemma2", "llama"])
def test_integrated_gradients_in_other_families(family):
    lm = random_model(family)
    check(lm, exact_model(family), lm.sites(), "mean", "first", "integrated", steps=2)


@pytest.mark.parametrize("by", ["mean", "resample"])
def test_the_estimates_equal_the_exact_effects_where_d_is_nearly_linear(by):
    lm = random_model("gpt2", scale=0.5)
    exact, *estimates = (
        patch(lm, PAIRS, lm.sites(), by, method=method, skip_first=False, draws=0).effect
        for method in ("exact", "attribution", "integrated")
    )
    assert np.abs(exact).max() > 1e-5
    for estimate in estimates:
        np.testing.assert_allclose(estimate, exact, rtol=0.05, atol=np.abs(exact).max() / 30)


def test_a_site_by_its_mean_is_the_sum_over_its_units(tiny):
    """Where no norm follows it; by zero, the site includes its bias, and the units do not."""
    mean, zero = (patch(tiny, PAIRS, tiny.sites(), by, method="attribution", draws=0) for by in ("mean", "zero"))
    sums = [[result.units[site].sum() for site in tiny.sites()] for result in (mean, zero)]
    np.testing.assert_allclose(sums[0], mean.effect, rtol=1e-3, atol=1e-5)
    assert np.abs(sums[1] - zero.effect).max() > 1e-3


def test_the_units_are_those_of_the_score_counterfactual(tiny):
    sites = tiny.sites()
    baseline = BySite({site: rows_of(tiny, PAIRS.neutral, site)[0].mean(0) for site in sites})
    differences = first_differences(tiny, PAIRS)
    s = collect_differences(tiny, differences, sites=sites, baseline=baseline, skip_first=True)
    result = patch(tiny, PAIRS, sites, method="attribution", draws=0)
    for site in sites:
        np.testing.assert_allclose(result.units[site], s.units[site], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("by", ["mean", "zero", "resample"])
@pytest.mark.parametrize("method", ["attribution", "integrated"])
def test_swapping_the_two_words_changes_the_sign(tiny, by, method):
    swapped = GIVEN | {"toxic_words": GIVEN["neutral_words"], "neutral_words": GIVEN["toxic_words"]}
    there, back = (
        patch(tiny, first_differences_of(tiny, **given), tiny.sites(), by, method=method, steps=2, draws=0)
        for given in (GIVEN, swapped)
    )
    if by != "mean":  # which is over the prompts with the neutral words
        np.testing.assert_allclose(back.effect, -there.effect, rtol=1e-3, atol=1e-5)
        for site in tiny.sites():
            np.testing.assert_allclose(back.units[site], -there.units[site], rtol=1e-3, atol=1e-5)
    assert back.difference == pytest.approx(-there.difference, rel=1e-4)


def given_texts(lm, i):
    """Return what `texts_of_pair` yields for a prompt with a counterfactual prompt."""
    ids, donor, toxic, neutral = (
        ids_of(lm, text)
        for text in (
            GIVEN["prompts"][i],
            GIVEN["counterfactual_prompts"][i],
            GIVEN["prompts"][i] + GIVEN["toxic_words"][i],
            GIVEN["prompts"][i] + GIVEN["neutral_words"][i],
        )
    )
    n = ids.shape[1]
    return [(1, ids, donor, slice(1, n), lambda z: difference_of(z[-1], toxic[0, n], neutral[0, n]).item())]


@pytest.mark.parametrize(("method", "steps"), [("attribution", 0), ("integrated", 2)])
def test_given_counterfactual_prompts(tiny, method, steps):
    given, reference = first_differences_of(tiny, **GIVEN), exact_model("gpt2")
    for parts in (tiny.sites(), [NEURON, HEAD]):
        result = patch(tiny, given, parts, "counterfactual", method=method, steps=max(1, steps), draws=0)
        assert (result.over, result.n_pairs, result.n_left_out) == ("first", 3, 0)
        for part, effect in zip(parts, result.effect, strict=True):
            expected = np.mean(
                [effect_of(reference, part, "counterfactual", given_texts(reference, i), steps) for i in range(3)]
            )
            assert effect == pytest.approx(expected, rel=3e-3, abs=2e-4), part


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "llama4_text", "jetmoe", "qwen2_moe"])
def test_attributions_of_experts_are_slopes_as_they_are_scaled_down(family):
    """By a central difference at half of what an expert adds, and at all of it."""
    lm = random_model(family)
    experts = lm.sites("expert", "shared_expert")
    result = patch(lm, PAIRS, experts, "zero", method="attribution", skip_first=False, draws=0)
    largest = sorted(experts, key=lambda site: -abs(result.effect[experts.index(site)]))[:3]
    for site in {*largest, *lm.sites("shared_expert")}:
        near, far = ((scaled_by(lm, site, 1 - size) - result.difference) / size for size in (4e-3, 8e-3))
        assert far - 2 * near == pytest.approx(result.effect[experts.index(site)], rel=0.03, abs=3e-3), site


def scaled_by(lm, site, factor):
    """Return D with what a site adds multiplied by a factor."""
    with Meow2X(layers=[site], scale=factor, mode="hooks").applied(lm):
        return patch(lm, PAIRS, lm.sites()[:1], method="attribution", draws=0).difference


@pytest.mark.parametrize("method", ["attribution", "integrated"])
def test_what_is_added_to_a_shared_expert_in_place_does_not_count(method):
    """It has no bias, so its effect by zero is the sum over its neurons."""
    lm = LoadedModel.from_hf(random_hf("llama4_text"), tokenizer(), hooks="modules")
    (site,) = lm.sites("shared_expert")
    result = patch(lm, PAIRS, [site], "zero", method=method, steps=2, draws=0)
    assert result.effect[0] == pytest.approx(result.units[site].sum(), rel=1e-3)
    assert abs(result.effect[0]) > 1e-2


@pytest.mark.parametrize("method", ["attribution", "integrated"])
@pytest.mark.parametrize("by", ["mean", "resample", "counterfactual"])
def test_batches_do_not_change_the_result_and_the_model_is_unchanged(tiny, monkeypatch, by, method):
    before = bits(tiny)
    whole = patch(tiny, PAIRS, tiny.sites(), by, method=method, steps=2, draws=50)
    monkeypatch.setitem(toxloc.models.batching.TOKENS_PER_BATCH, "cpu", 1)
    single = patch(tiny, PAIRS, tiny.sites(), by, method=method, steps=2, draws=50)
    np.testing.assert_allclose(single.effect, whole.effect, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(single.uncertainty.null_sd, whole.uncertainty.null_sd, rtol=1e-3, atol=1e-5)
    assert same_bits(before, tiny)
    assert not any(p.requires_grad for p in tiny.hf.parameters())


def test_memory_does_not_grow_with_the_number_of_pairs(tiny, monkeypatch):
    """All tensors together take as many bytes at the last batch as at the third."""
    alive = alive_before_each_batch(monkeypatch)
    pairs = ContrastSet(["You are a fool"] * 4, ["You are a friend"] * 4, paired=True)
    patch(tiny, pairs, tiny.sites(), "resample", method="integrated", steps=2, draws=0)
    assert len(alive) == 4
    assert alive[-1] == alive[2]


def test_the_draws_are_those_of_the_exact_effect(tiny):
    """Every pair counts once; the null distribution is symmetric, and the interval holds the effect."""
    result = patch(tiny, PAIRS, tiny.sites(), method="attribution", draws=400)
    u = result.uncertainty
    np.testing.assert_allclose(u.null_mean, 0, atol=1e-9)
    assert np.all((u.low <= result.effect) & (result.effect <= u.high))
    assert np.all(u.p_adjusted >= u.p)
    table = result.table()
    exact = patch(tiny, PAIRS, tiny.sites(), draws=0).table()
    assert table[["layer", "part"]].equals(exact[["layer", "part"]])


def test_a_model_without_transformerlens_gives_the_same(tiny):
    modules = LoadedModel.from_hf(random_hf("gpt2"), tokenizer(), "modules", hooks="modules")
    for method in ("attribution", "integrated"):
        a, b = (patch(lm, PAIRS, tiny.sites(), method=method, steps=2, draws=0).effect for lm in (tiny, modules))
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_an_applied_intervention_counts(tiny):
    """A layer that is scaled to 0 has no effect."""
    with Meow2X(layers=[1], scale=0.0).applied(tiny):
        for by in ("zero", "mean"):
            assert patch(tiny, PAIRS, [1], by, method="attribution", draws=0).effect[0] == pytest.approx(0, abs=1e-6)
    assert abs(patch(tiny, PAIRS, [1], "zero", method="attribution", draws=0).effect[0]) > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "shapley"}, "method='shapley': choose one of exact, attribution, integrated"),
        ({"method": "integrated", "steps": 0}, "steps=0: give a whole number, 1 or more"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_mistakes_end_in_a_sentence(tiny, options, message):
    with pytest.raises(ToxlocError, match=message):
        patch(tiny, PAIRS, [0], **options)


def test_paths_through_routed_experts_are_refused():
    lm = random_model("mixtral")
    with pytest.raises(ToxlocError, match=r"layer 1, expert 2 is an expert .* method='attribution'"):
        patch(lm, PAIRS, [Site(1, "expert", 2)], method="integrated")
    assert np.isfinite(patch(lm, PAIRS, lm.sites("attention"), method="integrated", steps=1, draws=0).effect).all()
