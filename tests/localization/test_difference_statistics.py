from contextlib import ExitStack

import numpy as np
import pytest
import torch

import toxloc.models.batching
from benchmarks.families import random_hf, tokenizer
from tests.conftest import bits, random_model, same_bits
from tests.tensors import alive_before_each_batch
from toxloc import Meow2X, ToxlocError, collect_contrast
from toxloc.localization.difference_statistics import collect_differences
from toxloc.localization.first_difference import first_differences
from toxloc.models.activations import change, keys_of
from toxloc.models.loaded import LoadedModel
from toxloc.models.sites import BySite, Site

from .by_hand import rows_of
from .prefixes_by_hand import PAIRS, USABLE, values_of

GROUP = np.array([0, 1, 1, 2])  # of the usable pairs


def collected(lm, sites, baseline=None, skip_first=False, group=GROUP, pairs=PAIRS):
    differences = first_differences(lm, pairs)
    return collect_differences(lm, differences, sites=sites, group=group, baseline=baseline, skip_first=skip_first)


def means_of(lm, texts, sites):
    return BySite({site: rows_of(lm, texts, site)[0].mean(0) for site in sites})


def by_hand(lm, sites, baseline, skip_first=False):
    """Return the sums over each group of pairs and the means of units, from autograd on the plain model."""
    groups = {site: np.zeros(3) for site in sites}
    units = {site: np.zeros(lm.at(site).n_units) for site in sites}
    differences = []
    for i, group in zip(USABLE, GROUP, strict=True):
        values, difference = values_of(lm, i, sites, baseline, skip_first)
        differences.append(difference)
        for site, value in values.items():
            groups[site][group] += value.sum().item()
            units[site] += value.sum(0).numpy().reshape(lm.at(site).n_units, -1).sum(1) / len(USABLE)
    return groups, units, np.mean(differences)


def check(lm, sites, baseline, skip_first=False):
    s = collected(lm, sites, baseline, skip_first)
    zero = BySite({site: torch.zeros(lm.at(site).d_in, dtype=torch.float64) for site in sites})
    groups, units, difference = by_hand(lm, sites, baseline or zero, skip_first)
    assert s.n_pairs == len(USABLE)
    assert s.difference == pytest.approx(difference, rel=1e-4)
    assert s.counts.tolist() == [1, 2, 1]
    for site in sites:
        assert np.abs(groups[site]).max() > 1e-4
        np.testing.assert_allclose(s.sites[site], groups[site], rtol=2e-3, atol=1e-5, err_msg=str(site))
        np.testing.assert_allclose(s.units[site], units[site], rtol=2e-3, atol=1e-5, err_msg=str(site))


def test_values_equal_autograd_on_the_plain_model(any_family):
    """Of MLPs and attentions, neurons and heads, also where a norm follows the site."""
    lm = any_family
    check(lm, lm.sites(), means_of(lm, PAIRS.neutral, lm.sites()))


@pytest.mark.parametrize("skip_first", [True, False])
def test_the_baseline_may_be_zero_and_the_first_position_may_count(tiny, skip_first):
    check(tiny, tiny.sites(), None, skip_first)


def test_a_model_without_transformerlens_gives_the_same(tiny):
    lm = LoadedModel.from_hf(random_hf("gpt2"), tokenizer(), "modules", hooks="modules")
    check(lm, lm.sites(), means_of(lm, PAIRS.neutral, lm.sites()))


def test_mixers_are_sites_too():
    lm = random_model("qwen3_5_text")
    sites = lm.sites("mixer", "mlp")
    assert {site.part for site in sites} == {"mixer", "mlp"}
    check(lm, sites, means_of(lm, PAIRS.neutral, sites))


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "llama4_text", "jetmoe"])
def test_values_of_experts_are_slopes(family):
    """The slope of D as the activations of an expert are scaled down, by a central difference."""
    lm = random_model(family)
    sites = lm.sites("expert")
    s = collected(lm, sites)
    largest = sorted(sites, key=lambda site: -abs(s.units[site]).max())[:3]
    for site in largest:
        unit = int(np.abs(s.units[site]).argmax())
        for keys, expected in ((slice(None), s.sites[site].sum() / s.n_pairs), (unit, s.units[site][unit])):
            less, more = (difference_with(lm, site, keys, 1 + step) for step in (-2e-3, 2e-3))
            assert (more - less) / 4e-3 == pytest.approx(expected, rel=0.03, abs=2e-3)


def difference_with(lm, site, keys, factor):
    def scaled(a):
        a = a.clone()
        a[..., keys] *= factor
        return a

    with ExitStack() as stack:
        change(lm, keys_of(lm, site), scaled, stack)
        return collected(lm, lm.sites()[:1]).difference


def test_only_tokens_routed_to_an_expert_are_compared_with_its_baseline():
    """The value is linear in the baseline, and the mean over the neutral tokens that are routed to it is taken."""
    lm = random_model("mixtral")
    sites = lm.sites("expert")
    s = collect_contrast(lm, PAIRS, sites=sites, gradients=False, differences=True)
    means = BySite({site: s.neutral.keys[site].mean for site in sites})
    assert all(s.neutral.keys[site].count == s.neutral.routed[site] for site in sites)
    zero, one = (collected(lm, sites, b) for b in (None, BySite({k: torch.ones_like(v) for k, v in means.items()})))
    for site in sites:
        slope = zero.units[site] - one.units[site]
        expected = zero.units[site] - slope * means[site].numpy()
        np.testing.assert_allclose(s.differences.units[site], expected, rtol=1e-3, atol=1e-5)


def test_collect_contrast_takes_the_mean_over_the_neutral_texts(tiny):
    s = collect_contrast(tiny, PAIRS, sites=tiny.sites(), differences=True)
    expected = collected(tiny, tiny.sites(), means_of(tiny, PAIRS.neutral, tiny.sites()), group=None)
    for site in tiny.sites():
        np.testing.assert_allclose(s.differences.units[site], expected.units[site], rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(s.differences.sites[site], expected.sites[site], rtol=1e-3, atol=1e-6)
    only = s.restricted("attention").differences
    assert set(only.sites) == set(only.units) == set(tiny.sites("attention"))
    assert collect_contrast(tiny, PAIRS).differences is None
    with pytest.raises(ToxlocError, match="moments=True"):
        collect_contrast(tiny, PAIRS, differences=True, moments=False)


def test_an_applied_intervention_counts(tiny):
    """Scaling the keys of a unit by 1/2 at inference gives the same as scaling its row of W_out."""
    values = []
    for mode in ("hooks", "weights"):
        with Meow2X(neurons=[(0, 3), (1, 5)], scale=0.5, mode=mode).applied(tiny):
            values.append(collected(tiny, tiny.sites()).sites)
    for site in tiny.sites():
        np.testing.assert_allclose(values[0][site], values[1][site], rtol=1e-3, atol=1e-5)


def test_batches_do_not_change_the_result_and_the_model_is_unchanged(tiny, monkeypatch):
    before = bits(tiny)
    whole = collected(tiny, tiny.sites())
    monkeypatch.setitem(toxloc.models.batching.TOKENS_PER_BATCH, "cpu", 1)
    single = collected(tiny, tiny.sites())
    assert single.difference == pytest.approx(whole.difference, rel=1e-5)
    for site in tiny.sites():
        np.testing.assert_allclose(single.units[site], whole.units[site], rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(single.sites[site], whole.sites[site], rtol=1e-3, atol=1e-6)
    assert same_bits(before, tiny)
    assert not any(p.requires_grad for p in tiny.hf.parameters())


def test_memory_does_not_grow_with_the_number_of_pairs(tiny, monkeypatch):
    """All tensors together take as many bytes at the last batch as at the third."""
    alive = alive_before_each_batch(monkeypatch)
    pairs = toxloc.ContrastSet(["You are a fool"] * 5, ["You are a friend"] * 5, paired=True)
    collected(tiny, tiny.sites(), pairs=pairs, group=np.zeros(5, dtype=np.int64))
    assert len(alive) == 5
    assert alive[-1] == alive[2]


def test_the_graph_begins_at_the_first_site(tiny):
    earliest = []
    place = Site(0, "attention")

    def watch(x):
        earliest.append(x.requires_grad)

    with tiny.hooks([(tiny.at(place).keys_hook, watch)]):
        collected(tiny, [0])
    assert earliest == [False]
