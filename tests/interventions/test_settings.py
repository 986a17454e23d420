import subprocess
import sys

import pytest
from pydantic import ValidationError

from toxloc import TRNE, Budget, Meow2X, ToxlocError
from toxloc.interventions.registry import all_methods, method_settings
from toxloc.models.sites import Site

METHODS = all_methods()
WRONG = [
    ("trne", {"budgett": 1}, "trne has no setting 'budgett'; it takes budget, seed, strength, metric"),
    ("trne", {"statistics": 1}, "no setting 'statistics'"),
    ("trne", {"budget": "much"}, "trne: budget='much' is not a budget"),
    ("trne", {"budget": {"k": 1}}, "the limits perplexity and kl"),
    ("trne", {"budget": -1}, "such as 0.01, not -1"),
    ("trne", {"rounds": 2, "norm": 0.1}, "rounds=2: with more than one round, give a budget instead of norm="),
    ("trne", {"rounds": 2, "strength": 0.1}, "give a budget instead of strength="),
    ("trne", {"strength": 1.0, "norm": 0.1}, "Give one of budget=, norm= and strength="),
    ("trne", {"metric": "frobenius", "shrink": True}, 'shrink=True need metric="kl"'),
    ("trne", {"layers": ["nowhere"]}, "'nowhere' is not a site"),
    ("meow2x", {"parts": "heads"}, "meow2x: parts='heads': it must be 'neurons' or 'layers'"),
    ("meow2x", {"score": "magic"}, "score='magic'"),
    ("meow2x", {"scale": 2}, "1 (no change), not 2"),
    ("damp", {"k": 1.5}, "damp: k=1.5"),
    ("aura", {"strength": 2}, "aura: strength=2: it must be less than or equal to 1"),
    ("ablation", {"layers": []}, "leaves nothing to ablate"),
    ("value-vector", {"source": "dream"}, "source='dream'"),
    ("magic", {}, "Unknown method 'magic'; choose one of trne, meow2x, ablation"),
]
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = None  # importing these is an error
from toxloc.errors import ToxlocError
from toxloc.interventions.registry import all_methods, method_settings
names = list(all_methods())
for name in names:
    assert method_settings(name).budget.perplexity == 0.01
for name, settings in {wrong!r}:
    try:
        method_settings(name, **settings)
    except ToxlocError as error:
        print(error)
    else:
        raise SystemExit(f"{{name}} took {{settings}}")
print("|".join(names))
"""


@pytest.mark.parametrize(("method", "settings", "words"), WRONG)
def test_wrong_settings_are_named_without_a_model(method, settings, words):
    with pytest.raises(ToxlocError) as error:
        method_settings(method, **settings)
    assert words in str(error.value)


def test_wrong_settings_are_refused_without_torch():
    program = WITHOUT_TORCH.format(wrong=[(name, settings) for name, settings, _ in WRONG])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for _, _, words in WRONG:
        assert words in done.stdout
    assert done.stdout.splitlines()[-1] == "|".join(METHODS)


@pytest.mark.parametrize("method", METHODS.values(), ids=str)
def test_every_setting_says_what_it_means(method):
    for name, field in method.Settings.model_fields.items():
        assert field.description and len(field.description) > 15, name
        assert not field.description.endswith("."), name


@pytest.mark.parametrize("method", METHODS.values(), ids=str)
def test_settings_are_frozen_and_hold_no_text_or_model(method):
    settings = method.Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.seed = 1
    assert not {"lm", "pairs", "neutral", "statistics", "aurocs", "maps", "memory", "evidence"} & set(
        method.Settings.model_fields
    )


def test_the_strength_has_one_name():
    assert {kind for kind, method in METHODS.items() if "strength" in method.Settings.model_fields} == (
        set(METHODS) - {"meow2x", "damp"}
    )
    assert not [kind for kind, method in METHODS.items() if {"lam", "alpha"} & set(method.Settings.model_fields)]


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("trne", {}, "perplexity 0.01"),
        ("trne", {"budget": {"kl": 0.02}}, "KL 0.02"),
        ("trne", {"budget": {"perplexity": 0.005, "kl": 0.02}}, "perplexity 0.005 and KL 0.02"),
        ("trne", {"norm": 0.1}, "none"),
        ("trne", {"strength": 0.1}, "none"),
        ("aura", {"strength": 1}, "none"),
        ("damp", {"k": 5}, "none"),
        ("damp", {"scale": 0.5}, "perplexity 0.01"),
        ("meow2x", {"k": 3}, "perplexity 0.01"),
    ],
)
def test_the_budget_in_words_for_tables(method, settings, words):
    assert method_settings(method, **settings).budget_in_words == words


def test_numbers_and_names_of_layers_become_sites_and_a_count_stays_a_count():
    assert TRNE.Settings(layers=[2, "1.attention"]).layers == (Site(1, "attention"), Site(2))
    assert TRNE.Settings(layers=2).layers == 2
    assert TRNE.Settings(emphasis={1: 0.5, "0.attention": 2.0, "3": 1.0}).emphasis == {
        Site(1): 0.5,
        Site(0, "attention"): 2.0,
        Site(3): 1.0,
    }


def test_a_mapping_of_limits_becomes_a_budget():
    assert method_settings("trne", budget={"kl": 0.02}).budget == Budget(kl=0.02)


@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        ({}, True),
        ({"rounds": 2}, True),
        ({"fisher": "sampled"}, False),
        ({"shrink": True}, False),
        ({"ridge": "auto"}, False),
    ],
)
def test_when_trne_uses_shared_statistics(settings, shares):
    chosen = TRNE.Settings(**settings)
    assert chosen.shares_statistics == shares
    assert bool(TRNE.needs(chosen)) == shares


@pytest.mark.parametrize(
    ("method", "settings", "needs"),
    [
        (TRNE, {}, {"gradients", "curvature"}),
        (TRNE, {"metric": "frobenius"}, {"gradients"}),
        (TRNE, {"shrink": True}, set()),
        (Meow2X, {}, {"moments", "gradients", "curvature"}),
        (Meow2X, {"per_cost": False}, {"moments", "gradients"}),
        (Meow2X, {"parts": "layers"}, {"moments", "gradients"}),
        (Meow2X, {"score": "combined", "per_cost": False}, {"moments", "gradients", "reliance"}),
        (Meow2X, {"score": "auroc", "per_cost": False}, {"moments", "gradients", "peaks"}),
        (Meow2X, {"score": "counterfactual", "per_cost": False}, {"moments", "gradients", "differences"}),
        (Meow2X, {"score": "editability", "per_cost": False}, {"moments", "gradients", "curvature"}),
        *(
            (METHODS[name], {}, set())
            for name in ("aura", "damp", "linear-act", "profs", "steering", "ablation", "value-vector")
        ),
    ],
)
def test_the_statistics_that_each_method_needs(method, settings, needs):
    assert method.needs(method.Settings(**settings)) == needs
