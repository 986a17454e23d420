import numpy as np
import pytest
import torch

import toxloc.models.batching
from benchmarks.families import DENSE
from tests.conftest import TEXTS, random_model
from tests.tensors import bytes_alive
from toxloc import ContrastSet, ToxlocError, collect_contrast
from toxloc.localization.moments import Moments
from toxloc.localization.text_statistics import collect
from toxloc.models import likelihood
from toxloc.models.batching import batches
from toxloc.models.sites import Site, sites_of

from .by_hand import statistics_of


@pytest.mark.parametrize("skip_first", [True, False])
def test_one_pass_equals_autograd_text_by_text(any_family, skip_first):
    """MLPs and attentions are gathered in the same pass."""
    lm = any_family
    gathered = collect(lm, TEXTS, curvature=True, skip_first=skip_first, sites=lm.sites())
    truth, nll, predicted = statistics_of(lm, TEXTS, lm.sites(), skip_first)
    assert gathered.n_predicted == predicted
    assert gathered.nll == pytest.approx(nll, rel=1e-5)
    for site in lm.sites():
        check(gathered, site, truth[site])


def check(gathered, site, truth):
    moments, rows, sums = gathered.keys[site], truth["a"], gathered.contributions
    assert moments.count == len(rows) == gathered.n_tokens == sums.tokens.sum()
    torch.testing.assert_close(moments.mean, rows.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moments.var, rows.var(0, correction=0), rtol=1e-3, atol=1e-6)
    rows = truth["m"]
    torch.testing.assert_close(sums.outputs[site].sum(0), rows.sum(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sums.squares[site].sum(0), (rows**2).sum(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(sums.attribution[site].numpy()[sums.group], truth["attribution"], rtol=2e-3, atol=2e-3)
    for name in "GCS":
        matrix = getattr(gathered, name)[site]
        assert (matrix - truth[name]).norm() <= 1e-4 * truth[name].norm(), name


@pytest.mark.parametrize("family", sorted(DENSE))
def test_attentions_gathered_alone_equal_autograd_text_by_text(family):
    """The autograd graph then begins at the first attention. Tested for every family."""
    lm = random_model(family)
    sites = lm.sites("attention")
    gathered = collect(lm, TEXTS[:3], curvature=True, sites=sites)
    truth, nll, _ = statistics_of(lm, TEXTS[:3], sites)
    assert list(gathered.G) == list(gathered.C) == list(gathered.S) == list(gathered.keys) == sites
    assert gathered.nll == pytest.approx(nll, rel=1e-5)
    for site in sites:
        check(gathered, site, truth[site])


def test_a_site_has_the_same_statistics_alone_and_with_others(any_family):
    lm = any_family
    whole = collect(lm, TEXTS, curvature=True, sites=lm.sites())
    for sites in (lm.sites("mlp"), lm.sites("attention"), ["1.attention"], [1, "0.attention"]):
        some = collect(lm, TEXTS, curvature=True, sites=sites)
        assert set(some.G) == set(sites_of(sites))
        for site in sites:
            for name in "GCS":
                torch.testing.assert_close(getattr(some, name)[site], getattr(whole, name)[site], rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(some.keys[site].mean, whole.keys[site].mean, rtol=1e-4, atol=1e-6)
            for sums in ("outputs", "attribution", "sketch"):
                torch.testing.assert_close(
                    getattr(some.contributions, sums)[site],
                    getattr(whole.contributions, sums)[site],
                    rtol=1e-3,
                    atol=1e-3,
                )
    assert set(collect(lm, TEXTS).G) == set(lm.sites("mlp"))


def test_curvature_is_gathered_only_for_the_given_sites(tiny):
    some = collect(tiny, TEXTS, curvature=True, sites=tiny.sites(), curved=["0.attention", 1])
    assert set(some.C) == set(some.S) == {Site(1), Site(0, "attention")}
    assert set(some.G) == set(tiny.sites())
    of_outputs = collect(tiny, TEXTS, output_curvature=True, sites=tiny.sites())
    assert set(of_outputs.S) == set(tiny.sites())
    assert set(of_outputs.C) == set(tiny.sites("attention"))  # heads are wider than one key
    torch.testing.assert_close(of_outputs.S["0.attention"], some.S["0.attention"])
    torch.testing.assert_close(of_outputs.C["0.attention"], some.C["0.attention"])


@pytest.mark.parametrize(
    ("sites", "message"),
    [([], "no sites"), ([2], "There is no layer 2"), (["9.attention"], "There is no layer 9, attention")],
)
def test_unknown_sites_are_named(tiny, sites, message):
    with pytest.raises(ToxlocError, match=message):
        collect(tiny, TEXTS, sites=sites)


def test_batches_do_not_change_the_result(tiny, monkeypatch):
    whole = collect(tiny, TEXTS, curvature=True, sites=tiny.sites())
    monkeypatch.setitem(toxloc.models.batching.TOKENS_PER_BATCH, "cpu", 1)
    single = collect(tiny, TEXTS, curvature=True, sites=tiny.sites())
    for site in tiny.sites():
        for name in "GCS":
            torch.testing.assert_close(getattr(whole, name)[site], getattr(single, name)[site], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(whole.keys[site].mean, single.keys[site].mean, rtol=1e-5, atol=1e-7)


def test_memory_does_not_grow_with_the_number_of_texts(tiny, monkeypatch):
    """All tensors together take as many bytes after the last batch as after the second."""
    alive = []

    def watched(*args, **kwargs):
        for batch in batches(*args, **kwargs):
            yield batch  # the pass reads the batch before it asks for the next
            alive.append(bytes_alive())

    monkeypatch.setattr("toxloc.localization.text_statistics.batches", watched)
    monkeypatch.setitem(toxloc.models.batching.TOKENS_PER_BATCH, "cpu", 16)
    collect(tiny, ["A text of a few words, always the same."] * 4, curvature=True)
    assert len(alive) == 4
    assert alive[-1] == alive[1]


def test_only_needed_gradients_are_computed(tiny, monkeypatch):
    unembedded, earliest = [], []
    unembed = likelihood.logit_rows
    monkeypatch.setattr(likelihood, "logit_rows", lambda *args: unembedded.append(1) or unembed(*args))
    unembedding = tiny.hooked.original_model.lm_head if tiny.is_bridge else tiny.hooked.unembed
    unembedding.register_forward_hook(lambda *_: pytest.fail("all positions were unembedded"))
    collect(tiny, TEXTS, gradients=False)
    assert not unembedded

    def before_the_first_mlp(x, hook):
        earliest.append(x.requires_grad)

    with tiny.hooked.hooks(fwd_hooks=[("blocks.0.hook_resid_mid", before_the_first_mlp)]):
        collect(tiny, TEXTS)
    assert unembedded
    assert not any(earliest)
    assert all(p.grad is None and not p.requires_grad for p in tiny.hf.parameters())


def test_trainable_weights_are_restored_and_hooks_are_removed(tiny):
    weight = tiny.down_projection(0).weight
    weight.requires_grad_(True)
    collect(tiny, TEXTS)
    assert weight.requires_grad
    assert weight.grad is None
    assert all(not point.fwd_hooks for point in tiny.hooked.hook_dict.values())


def test_the_padding_side_of_the_tokenizer_does_not_matter(tiny):
    right = collect(tiny, TEXTS)
    tiny.tokenizer.padding_side = "left"
    left = collect(tiny, TEXTS)
    torch.testing.assert_close(dict(right.G), dict(left.G))


def test_half_precision_models_are_summed_in_float32():
    gathered = collect(random_model(dtype=torch.bfloat16), TEXTS, curvature=True)
    assert {t.dtype for t in [*gathered.G.values(), *gathered.C.values(), *gathered.S.values()]} == {torch.float32}


def test_the_contrast_gradient_is_a_difference_and_more_neutral_text_is_weighted_by_tokens(tiny):
    pairs = ContrastSet(TEXTS[:2], TEXTS[2:4])
    s = collect_contrast(tiny, pairs, curvature=True, more_neutral=TEXTS[4:])
    torch.testing.assert_close(s.G(1), collect(tiny, TEXTS[:2]).G[1] - collect(tiny, TEXTS[2:4]).G[1])
    together = collect(tiny, TEXTS[2:], curvature=True)
    torch.testing.assert_close(s.S[1], together.S[1], rtol=1e-3, atol=1e-6)


def test_moments_of_chunks_equal_those_of_the_rows_of_weight_1():
    rows = 100 + torch.randn(50, 3, dtype=torch.float64)
    counted = torch.arange(50) % 3 > 0
    moments = Moments(3)
    for part, weights in zip(rows.float().split([7, 0, 1, 42]), counted.float().split([7, 0, 1, 42]), strict=True):
        moments.update(part, weights, int(weights.sum()))
    assert moments.count == counted.sum()
    torch.testing.assert_close(moments.mean, rows[counted].mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(moments.var, rows[counted].var(0, correction=0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("texts", "message"), [([], "no texts"), (["fine", " "], "number 1 is empty")])
def test_empty_texts_are_named(tiny, texts, message):
    with pytest.raises(ToxlocError, match=message):
        collect(tiny, texts)


def test_the_first_128_tokens_of_a_text_count_by_default():
    """The first token is not predicted."""
    s = collect_contrast(random_model("llama"), ContrastSet(["word " * 200], ["a word"]))
    assert s.toxic.n_predicted == 127
