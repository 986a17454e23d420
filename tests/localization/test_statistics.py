import gc

import pytest
import torch
from torch.nn import functional as F

import toxloc.localization.statistics
import toxloc.models.batching
from tests.conftest import TEXTS, random_model
from toxloc import ContrastSet, ToxlocError, collect_contrast
from toxloc.localization.moments import Moments
from toxloc.localization.statistics import collect
from toxloc.models import likelihood


def ids_of(lm, text):
    return torch.tensor([[0, *lm.tokenizer(text)["input_ids"]]])


def slow(lm, texts, skip_first):
    """One text at a time: run_with_cache for activations, full autograd on the weights, position by position."""
    L = range(lm.n_layers)
    first = 1 if skip_first else 0
    rows = {("a", i): [] for i in L} | {("m", i): [] for i in L} | {("C", i): [] for i in L} | {("S", i): [] for i in L}
    predicted, total = 0, 0.0
    G = [torch.zeros(lm.d_mlp, lm.d_model) for _ in L]
    for text in texts:
        ids = ids_of(lm, text)
        _, cache = lm.hooked.run_with_cache(ids, attention_mask=torch.ones_like(ids))
        kept = {}
        handles = []
        for i in L:
            def keep(module, args, out, i=i, kept=kept):
                out.retain_grad()
                kept[i] = out
            handles.append(lm.down_projection(i).register_forward_hook(keep))
        for p in lm.hf.parameters():
            p.requires_grad_(True)
        loss = F.cross_entropy(lm.hf(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="sum")
        loss.backward()
        total += loss.item()
        predicted += ids.shape[1] - 1
        for i in L:
            a = cache[f"blocks.{i}.mlp.hook_post"].reshape(ids.shape[1], -1).detach()
            m = cache[lm.output_hook(i)].reshape(ids.shape[1], -1).detach()
            delta = kept[i].grad.reshape(ids.shape[1], -1)
            weight = lm.down_projection(i).weight
            full = weight.grad if weight.shape == (lm.d_mlp, lm.d_model) else weight.grad.T
            G[i] += full - (torch.outer(a[0], delta[0]) if skip_first else 0)
            rows["a", i].append(a[first:])
            rows["m", i].append(m[first:])
            rows["C", i] += [torch.outer(x, x) for x in a]
            rows["S", i] += [torch.outer(x, x) for x in delta]
        for h in handles:
            h.remove()
        lm.hf.zero_grad(set_to_none=True)
        lm.hf.requires_grad_(False)
    return {
        "a": [torch.cat(rows["a", i]).double() for i in L], "m": [torch.cat(rows["m", i]).double() for i in L],
        "G": [g / predicted for g in G], "C": [torch.stack(rows["C", i]).mean(0) for i in L],
        "S": [torch.stack(rows["S", i]).sum(0) / predicted for i in L], "nll": total / predicted, "n": predicted,
    }


@pytest.mark.parametrize("skip_first", [True, False])
def test_one_pass_equals_run_with_cache_and_autograd_text_by_text(any_family, skip_first):
    lm = any_family
    found = collect(lm, TEXTS, curvature=True, skip_first=skip_first)
    truth = slow(lm, TEXTS, skip_first)
    assert found.n_predicted == truth["n"]
    assert found.nll == pytest.approx(truth["nll"], rel=1e-5)
    for i in range(lm.n_layers):
        moments, rows = found.neurons[i], truth["a"][i]
        assert moments.count == len(rows) == found.n_tokens == found.contributions.tokens.sum()
        torch.testing.assert_close(moments.mean, rows.mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(moments.var, rows.var(0, correction=0), rtol=1e-3, atol=1e-6)
        rows = truth["m"][i]
        torch.testing.assert_close(found.contributions.outputs[i].sum(0), rows.sum(0), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.contributions.squares[i].sum(0), (rows**2).sum(0), rtol=1e-4, atol=1e-4)
        for name in "GCS":
            ours, slow_one = getattr(found, name)[i], truth[name][i]
            assert (ours - slow_one).norm() <= 1e-4 * slow_one.norm(), name


def test_batches_do_not_change_the_result(tiny, monkeypatch):
    whole = collect(tiny, TEXTS, curvature=True)
    monkeypatch.setitem(toxloc.models.batching.TOKENS_PER_BATCH, "cpu", 1)
    single = collect(tiny, TEXTS, curvature=True)
    for name in "GCS":
        torch.testing.assert_close(getattr(whole, name), getattr(single, name), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(whole.neurons[1].mean, single.neurons[1].mean, rtol=1e-5, atol=1e-7)


def test_memory_does_not_grow_with_the_number_of_texts(tiny, monkeypatch):
    """Bytes of all tensors alive after every batch: the same after the last as after the first."""
    alive = []
    read = toxloc.localization.statistics._Collector.read

    def watched(self, batch):
        read(self, batch)
        gc.collect()
        alive.append(sum(t.nbytes for t in gc.get_objects() if isinstance(t, torch.Tensor)))

    monkeypatch.setattr("toxloc.localization.statistics._Collector.read", watched)
    monkeypatch.setitem(toxloc.models.batching.TOKENS_PER_BATCH, "cpu", 16)
    collect(tiny, ["A text of a few words, always the same."] * 10, curvature=True)
    assert len(alive) == 10
    assert alive[-1] == alive[1]


def test_only_the_gradients_that_are_needed(tiny, monkeypatch):
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


def test_weights_that_were_trainable_are_so_again_and_hooks_are_gone(tiny):
    weight = tiny.down_projection(0).weight
    weight.requires_grad_(True)
    collect(tiny, TEXTS)
    assert weight.requires_grad
    assert weight.grad is None
    assert all(not point.fwd_hooks for point in tiny.hooked.hook_dict.values())


def test_padding_side_of_the_tokenizer_does_not_matter(tiny):
    one = collect(tiny, TEXTS)
    tiny.tokenizer.padding_side = "left"
    two = collect(tiny, TEXTS)
    torch.testing.assert_close(one.G, two.G)


def test_half_precision_models_are_summed_in_float32():
    found = collect(random_model(dtype=torch.bfloat16), TEXTS, curvature=True)
    assert {t.dtype for t in [*found.G, *found.C.values(), *found.S.values()]} == {torch.float32}


def test_the_contrast_gradient_is_the_difference_and_more_neutral_text_is_weighted_by_tokens(tiny):
    pairs = ContrastSet(TEXTS[:2], TEXTS[2:4])
    s = collect_contrast(tiny, pairs, curvature=True, more_neutral=TEXTS[4:])
    torch.testing.assert_close(s.G(1), collect(tiny, TEXTS[:2]).G[1] - collect(tiny, TEXTS[2:4]).G[1])
    together = collect(tiny, TEXTS[2:], curvature=True)
    torch.testing.assert_close(s.S[1], together.S[1], rtol=1e-3, atol=1e-6)


def test_moments_of_chunks_are_those_of_the_rows_that_count():
    rows = 100 + torch.randn(50, 3, dtype=torch.float64)
    counted = torch.arange(50) % 3 > 0
    moments = Moments()
    for part, weights in zip(rows.float().split([7, 0, 1, 42]), counted.float().split([7, 0, 1, 42]), strict=True):
        moments.update(part, weights, int(weights.sum()))
    assert moments.count == counted.sum()
    torch.testing.assert_close(moments.mean, rows[counted].mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(moments.var, rows[counted].var(0, correction=0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("texts", "words"), [([], "no texts"), (["fine", " "], "number 1 is empty")])
def test_bad_texts_are_named(tiny, texts, words):
    with pytest.raises(ToxlocError, match=words):
        collect(tiny, texts)
