import inspect

import pytest
import torch

from tests.conftest import TEXTS, bits, random_model, same_bits
from toxloc import TRNE, ContrastSet, DirectionalAblation, LinearAcT, Meow2X, ProFS, Steering, ToxlocError
from toxloc.interventions.base import KINDS, Intervention, layers_in_words, sites_in_words
from toxloc.interventions.methods.linear_act import Transport
from toxloc.interventions.rank_one import RankOne
from toxloc.interventions.registry import all_methods
from toxloc.interventions.unit_scaling import UnitScaling
from toxloc.models.sites import Site

PAIRS = ContrastSet(TEXTS[:2], TEXTS[2:])


def rank_ones(*sites):
    return TRNE([RankOne(site, torch.ones(16 if "attention" in str(site) else 64), torch.ones(16)) for site in sites])


def test_applying_twice_and_reverting_what_is_not_applied(tiny):
    meow = Meow2X(layers=[0])
    with pytest.raises(ToxlocError, match="nothing to revert"):
        meow.revert(tiny)
    meow.apply(tiny)
    with pytest.raises(ToxlocError, match="applied to random-gpt2 already"):
        meow.apply(tiny)
    meow.revert(tiny)


def test_one_intervention_on_two_models():
    meow, a, b = Meow2X(layers=[0]), random_model(seed=1), random_model(seed=2)
    meow.apply(a)
    meow.apply(b)
    meow.revert(a)
    assert a.interventions == []
    assert b.interventions == [meow]
    meow.revert(b)


def test_kinds_are_unique():
    with pytest.raises(TypeError, match="'meow2x' exists already"):
        type("Copy", (Intervention,), {"kind": "meow2x"})
    assert KINDS["meow2x"] is Meow2X


def test_a_kind_without_settings_cannot_be_fitted(tiny):
    with pytest.raises(ToxlocError, match="UnitScaling cannot be fitted"):
        UnitScaling.fit(tiny, PAIRS)


@pytest.mark.parametrize("method", all_methods().values(), ids=str)
def test_the_signature_of_every_fit_lists_its_settings_with_their_defaults(method):
    parameters = inspect.signature(method.fit).parameters
    assert list(parameters)[:6] == ["lm", "pairs", "settings", "neutral", "evidence", "statistics"]
    fields = method.Settings.model_fields
    assert list(parameters)[6:] == list(fields)
    assert {name: parameters[name].default for name in fields} == {
        name: field.default for name, field in fields.items()
    }
    for name, field in fields.items():
        assert f"    {name}: {field.description}." in method.fit.__doc__


def test_options_change_single_fields_of_given_settings(tiny):
    settings = Steering.Settings(layer=0, strength=0.25)
    assert (Steering.fit(tiny, PAIRS, settings).layer, Steering.fit(tiny, PAIRS, settings).strength) == (0, 0.25)
    changed = Steering.fit(tiny, PAIRS, settings, strength=0.5)
    assert (changed.layer, changed.strength) == (0, 0.5)


def test_an_option_that_does_not_exist_is_named_with_those_that_do(tiny):
    with pytest.raises(ToxlocError, match="no setting 'lam'; choose one of budget, seed, strength"):
        Steering.fit(tiny, PAIRS, lam=1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: rank_ones(3, 1, 2, 1), "layers 1 to 3"),
        (lambda: rank_ones(0, Site(2, "attention"), "1.attention"), "layer 0 and the attention of layers 1, 2"),
        (lambda: rank_ones(Site(2, "attention")), "the attention of layer 2"),
        (lambda: Meow2X(layers=[0, 2], neurons=[(0, 1)]), "1 neuron (layer 0: 1) and layers 0, 2"),
        (
            lambda: Meow2X(layers=[Site(1, "attention"), 0], neurons=[(0, 1), ("0.attention", 1), ("0.attention", 0)]),
            "1 neuron (layer 0: 1) and 2 heads (layer 0: 2) and layer 0 and the attention of layer 1",
        ),
        (lambda: Steering(torch.ones(16), layer=1, strength=1.0), "layer 1"),
        (lambda: ProFS({0: torch.eye(16)[:1], 1: torch.eye(16)[:1]}), "layers 0, 1"),
        (lambda: DirectionalAblation(torch.eye(16)[0], [0, 1, 2]), "layers 0 to 2"),
        (lambda: LinearAcT([Transport(*torch.ones(4, 16))]), "all layers"),
    ],
)
def test_where_says_what_is_changed(make, words):
    assert make().where() == words


def test_layers_in_words():
    assert [layers_in_words(layers) for layers in ([2], [2, 3], [2, 3, 4], [2, 3, 5])] == [
        "layer 2",
        "layers 2, 3",
        "layers 2 to 4",
        "layers 2, 3, 5",
    ]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["2.mlp"], "layer 2"),
        (["0.mlp", "1.mlp", "2.mlp"], "layers 0 to 2"),
        (["2.expert.7"], "1 expert of layer 2"),
        (["2.expert.7", "2.expert.0", "4.expert.7"], "3 experts of layers 2, 4"),
        (["2.expert.7", "2.expert.7"], "1 expert of layer 2"),
        (["1.mixer", "0.shared_expert"], "the mixer of layer 1 and the shared expert of layer 0"),
        (
            ["3.expert.1", "1.attention", "0.mlp", "3.shared_expert"],
            "layer 0 and the attention of layer 1 and 1 expert of layer 3 and the shared expert of layer 3",
        ),
    ],
)
def test_sites_in_words(names, words):
    assert sites_in_words(Site.of(name) for name in names) == words


def test_the_fingerprint_depends_on_the_units_the_scale_and_the_mode():
    same = Meow2X(neurons=[(0, 1)], scale=0.5).fingerprint
    assert Meow2X(neurons=[(0, 1)], scale=0.5).fingerprint == same
    others = [
        Meow2X(neurons=[(0, 2)], scale=0.5),
        Meow2X(neurons=[(0, 1)], scale=0.25),
        Meow2X(neurons=[("0.attention", 1)], scale=0.5),
        Meow2X(neurons=[(0, 1)], scale=0.5, mode="weights"),
        Meow2X(layers=["0.attention"], scale=0.5),
        Meow2X(layers=[0], scale=0.5),
    ]
    assert len({same, *(intervention.fingerprint for intervention in others)}) == 7


# The hashes were computed with version 0.1, whose sweeps and runs are identified by them.
@pytest.mark.parametrize(
    ("make", "fingerprint"),
    [
        (
            lambda: TRNE(
                [
                    RankOne(0, torch.arange(64.0) / 64, torch.arange(16.0) - 8),
                    RankOne(1, torch.ones(64), torch.arange(16.0) ** 2),
                ],
                {
                    "metric": "kl",
                    "ridge": 1.0,
                    "shrink": False,
                    "fisher": "empirical",
                    "seed": 0,
                    "emphasis": {"1": 0.5},
                },
            ),
            "b620253e76968b4c",
        ),
        (lambda: Meow2X(layers=[1], neurons=[(0, 5), (1, 2)], scale=0.125, mode="weights"), "b8ca9f588d7ec1a3"),
        (lambda: Meow2X(neurons=[(0, 3), (1, 5)], scale=[0.25, 0.75]), "149efe7350a64a5c"),
    ],
)
def test_edits_of_mlps_alone_keep_the_fingerprint_of_version_0_1(make, fingerprint):
    assert make().fingerprint == fingerprint


def test_a_fit_leaves_the_model_as_it_was_also_when_it_is_refused(tiny):
    before = bits(tiny)
    with pytest.raises(ToxlocError, match="There is no layer 7"):
        TRNE.fit(tiny, PAIRS, layers=[7])
    assert same_bits(before, tiny)
    assert tiny.interventions == []
