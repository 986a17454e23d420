from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import TEXTS
from toxloc import (
    TRNE,
    AurA,
    ContrastSet,
    Damp,
    DirectionalAblation,
    Meow2X,
    NeutralText,
    ProFS,
    Steering,
    ToxlocError,
    collect_contrast,
)
from toxloc.interventions import evidence as module
from toxloc.interventions.evidence import Evidence
from toxloc.interventions.methods.value_vector import ValueVector
from toxloc.localization import statistics as statistics_module
from toxloc.localization.localize import localize
from toxloc.models.batching import batches
from toxloc.models.sites import Site

PAIRS = ContrastSet(TEXTS[:2], TEXTS[2:4], paired=True)
NEUTRAL = NeutralText(TEXTS[:1], TEXTS[2:], TEXTS[1:2])
FITS = [
    (TRNE, {"norm": 0.05}),
    (TRNE, {"norm": 0.05, "metric": "frobenius"}),
    (Meow2X, {"budget": 0.5}),
    (Meow2X, {"budget": 0.5, "score": "combined", "scale": 0.25}),
    (Meow2X, {"budget": 0.5, "score": "auroc"}),
    (Meow2X, {"budget": 0.5, "parts": "layers"}),
]


def counted(monkeypatch, where, name):
    """Record the calls of a function without changing what it returns."""
    real, calls = getattr(where, name), []

    def call(*args, **kwargs):
        calls.append((args, kwargs))
        return real(*args, **kwargs)

    monkeypatch.setattr(where, name, call)
    return calls


def saved_tensors(edit):
    with TemporaryDirectory() as folder:
        edit.save(Path(folder) / "edit")
        return load_file(Path(folder) / "edit" / "tensors.safetensors")


def assert_same_edit(left, right):
    assert left.config() == right.config()
    torch.testing.assert_close(saved_tensors(left), saved_tensors(right), rtol=1e-4, atol=1e-6)


def test_one_pass_for_all_fits_and_scores_gathers_the_same_as_separate_passes(tiny, monkeypatch):
    passes = counted(monkeypatch, module, "collect_contrast")
    needs = [method.needs(method.Settings(**options)) for method, options in FITS]
    shared = Evidence(tiny, PAIRS, NEUTRAL).expect(*frozenset().union(*needs))
    together = [method.fit(tiny, PAIRS, evidence=shared, **options) for method, options in FITS]
    loc = localize(tiny, PAIRS, ["attribution", "combined"], statistics=shared.statistics(), draws=0)
    assert len(passes) == 1
    assert set(passes[0][1]["more_neutral"]) == set(NEUTRAL.fit)
    alone = [method.fit(tiny, PAIRS, neutral=NEUTRAL, **options) for method, options in FITS]
    assert len(passes) == 1 + len(FITS)
    for shared_fit, separate_fit in zip(together, alone, strict=True):
        assert_same_edit(shared_fit, separate_fit)
        assert shared_fit.record.keys() == separate_fit.record.keys()
    separate = localize(tiny, PAIRS, ["attribution", "combined"], draws=0)
    for score in ("attribution", "combined"):
        np.testing.assert_allclose(loc.neuron_scores(score), separate.neuron_scores(score), rtol=1e-4, atol=1e-7)


def test_statistics_that_were_not_announced_are_gathered_when_they_are_first_needed(tiny, monkeypatch):
    passes = counted(monkeypatch, module, "collect_contrast")
    evidence = Evidence(tiny, PAIRS, NEUTRAL)
    assert not evidence.statistics(frozenset({"gradients"})).C
    assert evidence.statistics(frozenset({"gradients"})) is evidence.statistics()
    with_curvature = evidence.statistics(frozenset({"curvature"}))
    assert with_curvature.C and with_curvature.toxic.G  # the gradients that were gathered before are still there
    assert evidence.statistics(frozenset({"gradients", "curvature"})) is with_curvature
    assert len(passes) == 2
    attention = evidence.statistics(frozenset({"gradients"}), [Site(1, "attention")])
    assert attention.sites == [Site(1, "attention")]
    assert len(passes) == 3


def test_sites_that_were_gathered_with_others_are_not_gathered_again(tiny, monkeypatch):
    passes = counted(monkeypatch, module, "collect_contrast")
    evidence = Evidence(tiny, PAIRS, NEUTRAL).expect("curvature", "gradients")
    both = evidence.statistics(frozenset({"gradients", "moments"}), tiny.sites("mlp", "attention"))
    assert set(both.C) == set(tiny.sites("mlp"))  # the curvature is expected of the sites that methods edit by default
    mlp = evidence.statistics(frozenset({"gradients", "curvature"}))
    assert len(passes) == 1
    assert mlp.sites == list(mlp.C) == tiny.sites("mlp")
    expected = collect_contrast(tiny, PAIRS, curvature=True, more_neutral=NEUTRAL.fit)
    for site in mlp.sites:
        torch.testing.assert_close(mlp.G(site), expected.G(site), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(mlp.C[site], expected.C[site], rtol=1e-4, atol=1e-6)
    attention = evidence.statistics(frozenset({"curvature"}), tiny.sites("attention"))
    assert len(passes) == 2 and list(attention.C) == tiny.sites("attention")
    assert evidence.statistics(frozenset({"gradients"}), [Site(1)]).sites == [Site(1)]
    assert len(passes) == 2


def test_gathered_statistics_are_those_of_collect_contrast(tiny):
    gathered = Evidence(tiny, PAIRS, NEUTRAL).statistics(frozenset({"gradients", "curvature", "moments"}))
    expected = collect_contrast(tiny, PAIRS, curvature=True, more_neutral=NEUTRAL.fit)
    for layer in (0, 1):
        torch.testing.assert_close(gathered.G(layer), expected.G(layer))
        torch.testing.assert_close(gathered.C[layer], expected.C[layer])
        torch.testing.assert_close(gathered.S[layer], expected.S[layer])


def test_given_statistics_are_used_unchanged(tiny, monkeypatch):
    s = collect_contrast(tiny, PAIRS, curvature=True)
    passes = counted(monkeypatch, module, "collect_contrast")
    assert Evidence(tiny, PAIRS, statistics=s).statistics(frozenset({"gradients"})) is s
    edits = [
        TRNE.fit(tiny, PAIRS, norm=0.05, statistics=s),
        TRNE.fit(tiny, PAIRS, norm=0.05, evidence=Evidence(tiny, PAIRS, statistics=s)),
    ]
    assert_same_edit(*edits)
    assert passes == []
    with pytest.raises(ToxlocError, match="leave statistics= out"):
        TRNE.fit(tiny, PAIRS, shrink=True, evidence=Evidence(tiny, PAIRS, statistics=s))


def test_detectors_and_directions_are_read_once(tiny, monkeypatch):
    aurocs, rows = (counted(monkeypatch, module, name) for name in ("unit_aurocs", "residual_sides"))
    unedited = counted(monkeypatch, module, "snapshots")
    fits = [
        (AurA, {"budget": 2.0}),
        (AurA, {"strength": 1}),
        (Damp, {"k": 5}),
        (Damp, {"budget": 2.0}),
        (ValueVector, {"strength": 1.0}),
        (ValueVector, {"strength": 1.0, "source": "row"}),
        (Steering, {"strength": 1.0}),
        (DirectionalAblation, {"strength": 1}),
        (ProFS, {"strength": 1, "k": 1}),
        (Steering, {"budget": {"kl": 0.5}}),
    ]
    shared = Evidence(tiny, PAIRS, NEUTRAL)
    together = [method.fit(tiny, PAIRS, evidence=shared, **options) for method, options in fits]
    assert len(aurocs) == 1
    assert [call[0][2] for call in rows] == [[0], [1]]  # each layer once: that of the probe, then the middle layer
    assert len(unedited) == 1  # for the perplexity and for the KL
    for shared_fit, (method, options) in zip(together, fits, strict=True):
        assert_same_edit(shared_fit, method.fit(tiny, PAIRS, neutral=NEUTRAL, **options))


def test_all_fits_share_one_unedited_pass_over_the_tuning_text(tiny, monkeypatch):
    tune = ["The ferry to the island leaves at noon.", "Nobody knew who had planted the pear tree."]
    neutral = NeutralText(TEXTS[:1], tune, TEXTS[1:2])
    pairs = ContrastSet([f"You are fool number {i}." for i in range(6)], [f"This is cat number {i}." for i in range(6)])
    ids = [batch.ids.tolist() for batch in batches(tiny, tune)]
    real, passes = type(tiny).forward_hidden, []

    def forward_hidden(lm, read, mask):
        if read.tolist() in ids:
            passes.append(bool(lm.interventions))
        return real(lm, read, mask)

    monkeypatch.setattr(type(tiny), "forward_hidden", forward_hidden)
    evidence, evaluations = Evidence(tiny, pairs, neutral), 0
    tuned = counted(monkeypatch, module, "tune")
    for method, options in [
        (Steering, {"budget": 0.5}),
        (Steering, {"budget": {"kl": 0.5}}),
        (TRNE, {"budget": 0.5, "ridge": "auto"}),  # four fits on other evidence
        (TRNE, {"budget": 0.5, "rounds": 2}),  # the second round gathers evidence while the first edit is applied
    ]:
        evaluations += method.fit(tiny, pairs, evidence=evidence, **options).record["evaluations"]
    assert len(tuned) == 8
    assert passes.count(False) == len(ids)
    assert passes.count(True) > evaluations >= 4


def test_evidence_of_an_edited_model_compares_with_the_edited_model(tiny):
    evidence, edit = Evidence(tiny, PAIRS, NEUTRAL), Steering(torch.arange(16.0), 0, 1.0)
    before = evidence._snapshots()
    with edit.applied(tiny):
        assert evidence.on(PAIRS)._snapshots()[0].compare().kl == pytest.approx(0, abs=1e-6)
        assert before[0].compare().kl > 0.01
    assert evidence._snapshots() is before


def test_the_record_of_a_fit_does_not_reach_another_fit(tiny):
    shared = Evidence(tiny, PAIRS, NEUTRAL)
    first = Steering.fit(tiny, PAIRS, evidence=shared, strength=1.0)
    second = Steering.fit(tiny, PAIRS, evidence=shared, strength=0.5)
    assert (first.record["strength"], second.record["strength"]) == (1.0, 0.5)
    torch.testing.assert_close(first.direction, second.direction)


NEEDED = 4 * (2 * 64 * 16 + 64**2 + 16**2)  # bytes of G of both sides, C and S of an MLP of the tiny model


def test_the_memory_counts_the_bytes_of_both_gradients_and_of_the_curvature_in_float32(tiny):
    both, heads = [0, 1], [Site(0, "attention"), Site(1, "attention")]
    assert Evidence(tiny, PAIRS, memory=2 * NEEDED).fits(both)
    assert not Evidence(tiny, PAIRS, memory=2 * NEEDED - 1).fits(both)
    assert Evidence(tiny, PAIRS, memory=4 * 2 * (2 + 1 + 1) * 16**2).fits(heads)
    assert not Evidence(tiny, PAIRS, memory=4 * 2 * (2 + 1 + 1) * 16**2 - 1).fits(heads)
    s = collect_contrast(tiny, PAIRS, curvature=True)
    held = [*s.toxic.G.values(), *s.neutral.G.values(), *s.C.values(), *s.S.values()]
    assert sum(matrix.nbytes for matrix in held) == 2 * NEEDED


@pytest.mark.parametrize(("memory", "passes"), [(1, 2), (NEEDED, 2), (2 * NEEDED - 1, 2), (2 * NEEDED, 0)])
def test_trne_gathers_sites_in_groups_if_memory_is_short_and_makes_the_same_edit(tiny, monkeypatch, memory, passes):
    whole = TRNE.fit(tiny, PAIRS, norm=0.05, neutral=NEUTRAL)
    in_turn = counted(monkeypatch, statistics_module, "collect_contrast")
    shared = Evidence(tiny, PAIRS, NEUTRAL, memory=memory).expect("gradients", "curvature")
    assert bool(shared.statistics(frozenset({"gradients"})).C) == (passes == 0)
    edit = TRNE.fit(tiny, PAIRS, norm=0.05, evidence=shared)
    assert [call[1]["sites"] for call in in_turn] == [[Site(0)], [Site(1)]][:passes]
    for a, b in zip(whole.edits, edit.edits, strict=True):
        assert a.site == b.site
        torch.testing.assert_close(torch.outer(a.u, a.v), torch.outer(b.u, b.v), rtol=1e-3, atol=1e-7)


def test_a_single_site_that_fits_needs_no_turns_and_is_read_once(tiny, monkeypatch):
    whole = TRNE.fit(tiny, PAIRS, norm=0.05, layers=[1], neutral=NEUTRAL)
    calls = counted(monkeypatch, statistics_module, "collect_contrast")
    shared = Evidence(tiny, PAIRS, NEUTRAL, memory=NEEDED)
    for _ in range(2):
        assert_same_edit(TRNE.fit(tiny, PAIRS, norm=0.05, layers=[1], evidence=shared), whole)
    assert len(calls) == 1


def test_evidence_on_other_texts_is_new_and_keeps_the_neutral_text(tiny):
    evidence = Evidence(tiny, PAIRS, NEUTRAL)
    s = evidence.statistics(frozenset({"gradients"}))
    other = evidence.on(ContrastSet(TEXTS[:1], TEXTS[1:2]))
    assert other.neutral is NEUTRAL
    assert other.pairs.toxic == TEXTS[:1]
    assert not torch.allclose(other.statistics(frozenset({"gradients"})).G(0), s.G(0))


def test_the_built_in_text_is_loaded_when_it_is_needed(tiny, monkeypatch):
    loads = counted(monkeypatch, module, "load_neutral")
    evidence = Evidence(tiny, PAIRS)
    Steering.fit(tiny, PAIRS, evidence=evidence, strength=1.0)
    assert loads == []
    assert evidence.neutral is evidence.neutral
    assert len(loads) == 1


def test_what_is_remembered_is_computed_once(tiny):
    evidence, calls = Evidence(tiny, PAIRS), []
    assert [evidence.remember("key", lambda: calls.append(1) or len(calls)) for _ in range(3)] == [1, 1, 1]
    assert evidence.remember("other", lambda: 7) == 7
