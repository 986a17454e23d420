"""Every feature on a tiny random model of every family (benchmarks/coverage.py)."""

import pytest

from benchmarks import tables
from benchmarks.coverage import Coverage, check
from benchmarks.families import (
    DENSE,
    EXPERTS,
    FAMILIES,
    HYBRIDS,
    LAYOUTS,
    MULTIMODAL,
    STRUCTURE_ONLY,
    multimodal_config,
)
from toxloc.models.families import CHECKED

LIMITS = {"logits": 1e-4, "attribution": 1e-2, "meow2x": 1e-4, "trne": 1e-4, "export": 0.0, "revert": 0.0}
QUICK = (*LAYOUTS, *EXPERTS, *HYBRIDS, "gemma3", "qwen3_5")
EVERY = (*FAMILIES, *MULTIMODAL, *STRUCTURE_ONLY)


@pytest.mark.parametrize(
    "family", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in EVERY if name not in QUICK)]
)
def test_every_feature_works_on_every_family(family):
    measured = check(family)
    for name, limit in LIMITS.items():
        assert getattr(measured, name) <= limit, f"{name}: {getattr(measured, name)}"
    # TransformerLens 4.3 names Phi-MoE otherwise, and its adapters of the others do not run or compute other logits.
    no_bridge = {*STRUCTURE_ONLY, "codegen", "granitemoehybrid", "openai-gpt", "phimoe"}
    assert measured.hooks == ("ModuleTree" if family in no_bridge else "TransformerBridge")


def test_the_quick_families_are_among_all_families():
    assert set(QUICK) | set(DENSE) <= set(EVERY)
    assert len(EVERY) == len(set(EVERY))
    assert set(LIMITS) == set(Coverage.__dataclass_fields__) - {"hooks", "parts"}


def test_the_saved_table_has_every_family_and_every_number_in_it_is_small():
    saved = tables.saved("coverage")["families"]
    assert set(saved) == set(EVERY)
    for family, measured in saved.items():
        assert all(measured[name] <= limit for name, limit in LIMITS.items()), family


def test_the_families_that_are_loaded_without_checks_are_those_of_the_saved_table():
    saved = set(tables.saved("coverage")["families"])
    decoders = {multimodal_config(family).get_text_config().model_type for family in MULTIMODAL}
    assert (saved - {*MULTIMODAL, *STRUCTURE_ONLY}) | decoders == CHECKED
