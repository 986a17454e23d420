"""Interventions on the experts of mixtures: hooks equal weights on both trees, and files hold every site."""

from functools import cache

import numpy as np
import pytest
import torch

from benchmarks.coverage import random_edit
from benchmarks.families import EXPERTS
from tests.conftest import TEXTS, bits, random_model, same_bits
from tests.interventions.test_unit_scaling import logits
from toxloc import TRNE, AurA, ContrastSet, Damp, Meow2X, NeutralText, ToxlocError, load_intervention
from toxloc.interventions.rank_one import RankOne
from toxloc.interventions.unit_scaling import UnitScaling
from toxloc.localization.unit_aurocs import unit_aurocs
from toxloc.models.sites import FEED_FORWARD, Site

PAIRS = ContrastSet([*TEXTS[:2], "Hm, no."], TEXTS[2:])
NEUTRAL = NeutralText(TEXTS[:1], TEXTS[2:], TEXTS[1:2])


@cache
def model(family):
    return random_model(family)


def assert_hooks_equal_weights(lm, hooks, weights):
    before, untouched = bits(lm), logits(lm)[0]
    with hooks.applied(lm):
        assert same_bits(before, lm)
        expected = logits(lm)
    with weights.applied(lm):
        assert not same_bits(before, lm)
        changed = logits(lm)
    for other in (expected[1], *changed):
        torch.testing.assert_close(expected[0], other, rtol=1e-4, atol=1e-4)
    assert (expected[0] - untouched).abs().max() > 1e-2
    assert same_bits(before, lm)
    assert torch.equal(logits(lm)[0], untouched)


@pytest.mark.parametrize("method", [AurA, Damp])
@pytest.mark.parametrize("family", EXPERTS)
def test_fitted_units_hooked_equal_baked(family, method, tmp_path):
    lm = model(family)
    options = {AurA: dict(strength=1), Damp: dict(k=25, scale=0.5)}[method]
    fitted = method.fit(lm, PAIRS, neutral=NEUTRAL, **options)
    assert list(fitted.by_site) == lm.sites(*FEED_FORWARD)
    assert_hooks_equal_weights(lm, fitted, fitted.baked())
    fitted.save(tmp_path / "a")
    again = load_intervention(tmp_path / "a")
    assert again.describe() == fitted.describe()
    assert set(again.by_site) == set(fitted.by_site)
    assert all(torch.equal(row, again.by_site[site]) for site, row in fitted.by_site.items())
    assert_hooks_equal_weights(lm, again, again.baked())


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_the_units_of_an_expert_are_its_neurons_and_those_of_a_shared_expert_all_its_maps(family):
    lm = model(family)
    by_site = unit_aurocs(lm, PAIRS)
    assert list(by_site) == lm.sites(*FEED_FORWARD)
    for site, values in by_site.items():
        d = lm.at(site).d_in
        assert len(values) == (d if site.part == "expert" else 2 * d + lm.d_model)
    aura = AurA.fit(lm, PAIRS, strength=1)
    for site, values in by_site.items():
        np.testing.assert_allclose(aura.by_site[site], 1 - 2 * np.maximum(values - 0.5, 0), rtol=1e-6)
    assert aura.record["n_units"] == sum((values > 0.5).sum() for values in by_site.values())
    with pytest.raises(ToxlocError, match="not a matrix with a row per layer; read them from by_site"):
        aura.factors  # noqa: B018


def test_damp_ranks_the_units_of_all_experts_together():
    lm = model("qwen2_moe")
    by_site = unit_aurocs(lm, PAIRS)
    damp = Damp.fit(lm, PAIRS, k=40)
    chosen = np.concatenate([(row == 0).numpy() for row in damp.by_site.values()])
    aurocs = np.concatenate([*by_site.values()])
    assert chosen.sum() == 40
    assert aurocs[chosen].min() >= aurocs[~chosen].max()
    assert sum(bool((row == 0).any()) for row in damp.by_site.values()) > 2


@pytest.mark.parametrize(
    ("factors", "words"),
    [
        ({Site(0, "expert", 4): torch.zeros(48)}, "has 48 factors for layer 0, expert 4; random-mixtral has no units"),
        ({Site(1, "expert", 0): torch.zeros(47)}, "has 47 factors for layer 1, expert 0; random-mixtral has 48 units"),
        (torch.zeros(2, 112), "has factors for 2 layers of 112 units"),
    ],
)
def test_factors_of_another_mixture_are_refused(factors, words):
    with pytest.raises(ToxlocError, match=words):
        UnitScaling(factors).apply(model("mixtral"))
    assert model("mixtral").interventions == []


@pytest.mark.parametrize("family", [*EXPERTS, "jamba", "granitemoehybrid"])
def test_an_edit_of_sites_of_several_widths_is_saved_and_loaded(family, tmp_path):
    lm = random_model(family)
    first, second = random_edit(lm), random_edit(lm, seed=1)
    edit = TRNE([*first.edits, *second.edits[::2]])
    edit.save(tmp_path / "e")
    again = load_intervention(tmp_path / "e")
    saved, loaded = edit.low_rank(), again.low_rank()
    assert list(saved) == list(loaded) == sorted(lm.sites())
    for site, (u, v) in saved.items():
        assert torch.equal(u, loaded[site][0]) and torch.equal(v, loaded[site][1])
    before = bits(lm)
    with edit.applied(lm):
        edited = bits(lm)
    assert same_bits(before, lm)
    with again.applied(lm):
        assert same_bits(edited, lm)
    assert again.where() == edit.where()


def test_files_hold_experts_mlps_and_shared_experts_of_different_widths_apart(tmp_path):
    lm = random_model("deepseek_v3")  # an MLP of 48 neurons, experts of 24
    assert {lm.at(site).d_in for site in lm.sites(*FEED_FORWARD)} == {24, 48}
    generator = torch.Generator().manual_seed(0)

    def change(site):
        return RankOne(site, torch.randn(lm.at(site).d_in, generator=generator), torch.randn(16, generator=generator))

    sites = [Site(0), Site(1, "expert", 3), Site(1, "expert", 0), Site(1, "shared_expert"), Site(1, "attention")]
    edit = TRNE([change(site) for site in sites])
    edit.save(tmp_path / "e")
    assert load_intervention(tmp_path / "e").where() == edit.where()
    assert edit.where() == (
        "layer 0 and the attention of layer 1 and 2 experts of layer 1 and the shared expert of layer 1"
    )
    before = lm.W_out(Site(1, "expert", 3)).clone()
    with edit.applied(lm):
        step = lm.W_out(Site(1, "expert", 3)) - before
        torch.testing.assert_close(step, torch.outer(edit.edits[1].u, edit.edits[1].v), rtol=1e-4, atol=1e-4)


def test_an_edit_of_an_expert_that_the_model_lacks_or_of_another_width_is_refused():
    lm = model("mixtral")
    for site, width, words in (
        (Site(0, "expert", 4), 48, "There is no layer 0, expert 4 in random-mixtral; .* attention and experts 0 to 3"),
        (Site(0, "expert", 3), 24, "is for d_mlp=24, d_model=16; random-mixtral has d_mlp=48, d_model=16"),
        (Site(0), 48, "There is no layer 0 in random-mixtral; .* attention and experts 0 to 3"),
    ):
        with pytest.raises(ToxlocError, match=words):
            TRNE([RankOne(site, torch.ones(width), torch.ones(16))]).apply(lm)
    assert lm.interventions == []


UNITS = [(Site(1, "expert", 0), 3), (Site(1, "expert", 2), 0), (Site(1, "expert", 2), 5), (Site(1, "attention"), 1)]


@pytest.mark.parametrize("parts", [dict(neurons=UNITS), dict(layers=[Site(1, "expert", e) for e in (0, 2, 3)])])
@pytest.mark.parametrize("family", [family for family in EXPERTS if family != "jetmoe"])
def test_scaled_experts_and_neurons_are_saved_and_loaded_and_hooked_equals_baked(family, parts, tmp_path):
    lm = model(family)
    meow = Meow2X(scale=0.1, **parts)
    assert_hooks_equal_weights(lm, meow, meow.baked())
    meow.save(tmp_path / "m")
    again = load_intervention(tmp_path / "m")
    assert (again.units, again.sites, again.scale, again.mode) == (meow.units, meow.sites, 0.1, "hooks")
    assert again.describe() == meow.describe()
    assert again.where() == meow.where()
    assert_hooks_equal_weights(lm, again, again.baked())


def test_each_unit_keeps_its_scale_and_its_expert_in_a_file(tmp_path):
    scales = [0.0, 0.25, 0.5, 1.0, 0.75, 0.125]
    units = [*UNITS, (Site(0), 7), (Site(1, "shared_expert"), 2)]
    meow = Meow2X(neurons=units, scale=scales)
    meow.save(tmp_path / "m")
    again = load_intervention(tmp_path / "m")
    assert again.units == dict(zip(units, scales, strict=True))
    assert meow.where() == "5 neurons (layer 0: 1, layer 1: 4) and 1 head (layer 1: 1)"
    assert meow.neurons == {(0, 7): 0.75}
    assert meow.config()["n_neurons"] == 5


def test_the_scaled_experts_are_named():
    meow = Meow2X(layers=[Site(1, "expert", 0), Site(3, "expert", 2), Site(0)], scale=0.5)
    assert repr(meow) == "Meow2X(layers=[0], experts=['1.expert.0', '3.expert.2'], scale=0.5, mode='hooks')"
    assert meow.where() == "layer 0 and 2 experts of layers 1, 3"


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "qwen2_moe"])
def test_a_fit_on_a_mixture_scales_neurons_of_experts_within_the_budget(family):
    lm = model(family)
    before = bits(lm)
    meow = Meow2X.fit(lm, PAIRS, neutral=NEUTRAL, scale="graded", budget={"kl": 0.01})
    assert same_bits(before, lm)
    assert {site.part for site, _ in meow.units} <= set(FEED_FORWARD)
    assert len({site for site, _ in meow.units if site.part == "expert"}) > 4
    assert 0.009 <= meow.record["tuned_kl"] <= 0.01
    assert_hooks_equal_weights(lm, meow, meow.baked())
