import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

import toxloc.models.batching
from tests.conftest import TEXTS, random_hf, random_model, tokenizer
from toxloc import ContrastSet, ToxlocError, collect_contrast
from toxloc.localization.driving_texts import driving_texts
from toxloc.localization.promoted_tokens import promoted_tokens
from toxloc.localization.statistics import collect
from toxloc.localization.token_view import TokenView, token_view
from toxloc.models.architectures import ARCHITECTURES, architecture
from toxloc.models.loaded import LoadedModel
from toxloc.support.masking import mask

from .test_statistics import ids_of


def with_random_norms(family, **sizes):
    """A random model in float32 whose norms have gains of their own, and no cap on its logits."""
    hf = random_hf(family, **sizes)
    with torch.no_grad():
        for p in hf.parameters():
            if p.ndim == 1:
                p.add_(0.5 * torch.randn(p.shape))
    if hasattr(hf.config, "final_logit_softcapping"):
        hf.config.final_logit_softcapping = None
    return LoadedModel.from_hf(hf, tokenizer(), f"random-{family}")


def derivative_of_logits(lm, neuron):
    """d logits / d activation of a neuron of the last layer, by running the model itself, times what norms divide by.

    The MLP's output and the residual stream are set to vectors orthogonal to what the neuron writes there, where a
    norm's divisor does not change to first order; so this is exact, and knows nothing of the norms' places or gains.
    """
    layer = lm.n_layers - 1
    centred = "bias" in dict(lm.hf.get_submodule(architecture(lm.hf.config.model_type).final_norm).named_parameters())

    def orthogonal(w):
        x = torch.randn(w.shape)
        for _ in range(2):  # twice, for rounding
            if centred:
                x, w = x - x.mean(), w - w.mean()
            x = x - (x @ w) / (w @ w) * w
        return x

    row = lm.W_out(layer)[neuron].clone()
    m, written, stream = orthogonal(row), {}, {}

    def logits(h):
        def on_mlp(module, args, out):
            return torch.zeros_like(out) + m + h * row

        def on_block(module, args, out):
            hidden = out[0] if isinstance(out, tuple) else out
            if not stream:
                written["at 0"] = hidden.detach()
                return out
            hidden = stream["x"] + hidden - written["at 0"]
            return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

        block = lm.hf.get_submodule(architecture(lm.hf.config.model_type).blocks)[-1]
        handles = [lm.down_projection(layer).register_forward_hook(on_mlp), block.register_forward_hook(on_block)]
        try:
            return lm.hf(input_ids=torch.tensor([[5, 6]]), use_cache=False).logits[0, -1]
        finally:
            for handle in handles:
                handle.remove()

    def slope(function):  # not torch.func.jvp, which bloom's own activation function does not know
        return torch.autograd.functional.jvp(function, torch.zeros(()), torch.ones(()))[1]

    divisor = 1.0
    direction = row
    if lm.contribution(layer) is not lm.down_projection(layer):  # a norm follows the MLP: what does the stream get?
        divisor = m.pow(2).mean().sqrt()
        direction = slope(lambda h: lm.contribution(layer)(m + h * row))
    logits(torch.zeros(()))
    stream["x"] = orthogonal(direction)
    divisor = divisor * stream["x"].pow(2).mean().sqrt()
    return slope(logits) * divisor


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_promoted_tokens_are_those_whose_logits_rise_in_the_model_itself(family):
    lm = with_random_norms(family)
    truth = derivative_of_logits(lm, 7)
    for sign in (1, -1):
        found, = promoted_tokens(lm, [(1, 7)], k=5, sign=sign)
        order = (sign * truth).argsort(descending=True)[:5].tolist()
        assert found.tokens == [lm.tokenizer.decode([i]) for i in order]
        np.testing.assert_allclose(found.scores, truth[order], rtol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_every_layer_and_neuron_is_read_at_its_own_place(family):
    lm = with_random_norms(family)
    (first, last), again = promoted_tokens(lm, [(0, 3), (1, 5)]), promoted_tokens(lm, [(0, 3)])
    assert [(p.layer, p.neuron) for p in (first, last)] == [(0, 3), (1, 5)]
    assert first.tokens == again[0].tokens != last.tokens
    with torch.no_grad():
        lm.W_out(1)[5] = lm.W_out(0)[3]
        if family == "gemma2":
            lm.contribution(1).weight.copy_(lm.contribution(0).weight)
    np.testing.assert_array_equal(promoted_tokens(lm, [(1, 5)])[0].scores, first.scores)


def test_a_layer_norm_without_gain_only_centres():
    lm = with_random_norms("opt", layer_norm_elementwise_affine=False)
    row = lm.W_out(0)[0] - lm.W_out(0)[0].mean()
    expected = (lm.hf.lm_head.weight @ row).sort(descending=True).values[:3]
    np.testing.assert_allclose(promoted_tokens(lm, [(0, 0)], k=3)[0].scores, expected, rtol=1e-5)


def test_an_opt_that_norms_inside_its_blocks_says_so():
    lm = random_model("opt", do_layer_norm_before=False)
    with pytest.raises(ToxlocError, match=r"no final norm at model\.decoder\.final_layer_norm"):
        promoted_tokens(lm, [(0, 0)])


def test_rows_of_a_padded_vocabulary_are_no_tokens(tiny):
    tiny.hf.lm_head.weight[100:] *= 1000
    tiny.tokenizer.__class__ = type("Short", (tiny.tokenizer.__class__,), {"__len__": lambda self: 100})
    everything = {tiny.tokenizer.decode([i]) for i in range(100)}
    assert set(promoted_tokens(tiny, [(0, 0)], k=100)[0].tokens) == everything
    with pytest.raises(ToxlocError, match="k=101: random-gpt2 has 1 to 100 tokens"):
        promoted_tokens(tiny, [(0, 0)], k=101)


def test_half_precision_is_scored_in_float32():
    lm = random_model("llama", dtype=torch.bfloat16)
    row, gain = lm.W_out(1)[2].float(), lm.hf.model.norm.weight.float()
    expected = (lm.hf.lm_head.weight.float() @ (row * gain)).max()
    assert promoted_tokens(lm, [(1, 2)], k=1)[0].scores[0] == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(("how", "words"), [
    (dict(neurons=[(2, 0)]), r"No \(2, 0\); random-gpt2 has 2 layers of 64 neurons"),
    (dict(neurons=[(0, 64)]), r"No \(0, 64\)"), (dict(neurons=[(0, -1)]), r"No \(0, -1\)"),
    (dict(neurons=[], k=0), "k=0"), (dict(neurons=[], sign=0), "sign=0"),
])
def test_impossible_neurons_and_counts_are_named(tiny, how, words):
    with pytest.raises(ToxlocError, match=words):
        promoted_tokens(tiny, **how)


def test_promoted_prints_masked_and_keeps_raw(tiny):
    found, = promoted_tokens(tiny, [(0, 1)], k=40)
    raw = [token for token in found.tokens if mask(token) != token]
    assert raw
    assert found.shown() == [mask(token) for token in found.tokens] == list(found.to_frame()["token"])
    assert found.shown(masked=False) == found.tokens == list(found.to_frame(masked=False)["token"])
    assert all(repr(token) not in repr(found) + str(found) for token in raw)
    assert list(found.to_frame().columns) == ["layer", "neuron", "token", "score"]
    assert found.scores.dtype == np.float64


@pytest.mark.parametrize(("text", "masked"), [
    ("", ""), ("I am a fool.", "I a· a f···."), ("Shut\n  UP, you-know-who!!", "S···\n  U·, y··-k···-w··!!"),
    ("don't 1d10t n00b", "d··'· 1d10· n00·"), (" naïve", " n····"), ("nai\u0308ve", "n·····"), ("मूर्ख", "म····"),
    ("<|endoftext|>", "<|e········|>"), ("3 a_b 'tis'", "3 a_· 't··'"),
])
def test_mask_keeps_first_letters_and_lengths(text, masked):
    assert mask(text) == masked
    assert len(masked) == len(text)


def nlls_with_one_position_scaled(lm, ids, layer, factor):
    """Summed NLL of one text with what a layer's neurons write scaled at position t, for every t: a row each.

    Where a norm follows the MLP, which would take the scale out again, the norm's output is scaled.
    """
    normed = architecture(lm.hf.config.model_type).post_norm
    name = lm.contribution_hook(layer) if normed else lm.neuron_hook(layer)
    n = ids.shape[1]
    t = torch.arange(n)

    def scale(a, hook):
        a = a.clone()
        a.view(n, n, -1)[t, t] *= factor
        return a

    ids = ids.expand(n, n)
    with torch.no_grad(), lm.hooked.hooks(fwd_hooks=[(name, scale)]):
        logits = lm.forward(ids, torch.ones_like(ids)).double()
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none").sum(1)


def test_attribution_is_what_scaling_the_neurons_at_one_position_costs(any_family):
    lm, ids, h = any_family, ids_of(any_family, TEXTS[0]), 1e-2
    view = token_view(lm, TEXTS[0])
    assert view.attribution.shape == (lm.n_layers, ids.shape[1])
    assert view.attribution.dtype == np.float64
    less, more = (torch.stack([nlls_with_one_position_scaled(lm, ids, layer, factor) for layer in range(lm.n_layers)])
                  for factor in (1 - h, 1 + h))
    slopes = ((less - more) / (2 * h)).numpy()
    np.testing.assert_allclose(view.attribution, slopes, rtol=1e-2, atol=2e-3)
    assert np.abs(slopes).max() > 0.1


def test_attribution_sums_to_the_text_s_contribution(any_family):
    for skip_first in (False, True):
        gathered = collect(any_family, [TEXTS[2]], skip_first=skip_first).contributions.attribution
        found = token_view(any_family, TEXTS[2]).attribution[:, int(skip_first):].sum(1)
        np.testing.assert_allclose(found, torch.stack(gathered)[:, 0], rtol=1e-4, atol=1e-5)


def test_a_view_leaves_the_model_as_it_was(tiny):
    weight = tiny.down_projection(0).weight
    frozen = token_view(tiny, TEXTS[0])
    weight.requires_grad_(True)
    np.testing.assert_array_equal(token_view(tiny, TEXTS[0]).attribution, frozen.attribution)
    assert weight.grad is None
    assert all(not point.fwd_hooks for point in tiny.hooked.hook_dict.values())


def rows_of_outputs(lm, texts, layer):
    """m of every position but the first, one text at a time."""
    rows = []
    for text in texts:
        ids = ids_of(lm, text)
        _, cache = lm.hooked.run_with_cache(ids, attention_mask=torch.ones_like(ids))
        rows.append(cache[lm.output_hook(layer)].detach().view(ids.shape[1], -1)[1:].double().numpy())
    return np.concatenate(rows)


def test_activation_is_the_standardised_output_along_the_toxic_direction(any_family):
    lm, text = any_family, "A new text, of which the statistics know nothing."
    s = collect_contrast(lm, ContrastSet(TEXTS[:2], TEXTS[2:4]), gradients=False)
    view = token_view(lm, text, s)
    assert token_view(lm, text).activation is None
    for layer in range(lm.n_layers):
        T, N = (rows_of_outputs(lm, texts, layer) for texts in (TEXTS[:2], TEXTS[2:4]))
        apart = np.concatenate([T - T.mean(0), N - N.mean(0)])
        sd = np.sqrt((apart**2).mean(0))
        d = (T.mean(0) - N.mean(0)) / sd
        d /= np.sqrt((d**2).sum())
        expected = [sum((row[i] - (T.mean(0)[i] + N.mean(0)[i]) / 2) / sd[i] * d[i] for i in range(lm.d_model))
                    for row in rows_of_outputs(lm, [text], layer)]
        np.testing.assert_allclose(view.activation[layer, 1:], expected, rtol=1e-3, atol=1e-4)


def test_toxic_tokens_lie_on_the_toxic_side_of_the_middle(tiny):
    """Averaged over a set, activation is half the distance of the means, either way."""
    s = collect_contrast(tiny, ContrastSet(TEXTS[:1], TEXTS[1:2]), gradients=False)
    sides = [token_view(tiny, text, s).activation[:, 1:].mean(1) for text in TEXTS[:2]]
    np.testing.assert_allclose(sides[0], -sides[1], rtol=1e-4)
    assert (sides[0] > 0).all()


def test_a_contrast_without_difference_has_no_side(tiny):
    s = collect_contrast(tiny, ContrastSet(TEXTS[:1], TEXTS[:1]), gradients=False)
    np.testing.assert_array_equal(token_view(tiny, TEXTS[1], s).activation, 0)


def test_a_view_s_tokens_spell_the_text_and_words_are_masked_whole(lm):
    text = "He is insufferablest, and dumb."
    view = token_view(lm, text)
    assert view.tokens[0] == lm.tokenizer.bos_token
    assert "".join(view.tokens[1:]) == text
    assert len(view.tokens) > 1 + len(text.split()) + 2  # the long word is several tokens
    assert view.shown(masked=False) == view.tokens
    assert "".join(view.shown()[1:]) == mask(text)
    assert [len(token) for token in view.shown()] == [len(token) for token in view.tokens]
    assert "dumb" not in repr(view) + str(view)
    assert len(token_view(lm, text, max_length=4).tokens) == 4


def test_texts_with_nothing_to_predict_and_foreign_statistics_are_refused(tiny):
    with pytest.raises(ToxlocError, match="is empty"):
        token_view(tiny, " ")
    with pytest.raises(ToxlocError, match="one token"):
        token_view(tiny, "Hello", max_length=1)
    others = collect_contrast(random_model("gpt2", n_layer=3), ContrastSet(TEXTS[:1], TEXTS[1:2]), gradients=False)
    with pytest.raises(ToxlocError, match="another shape; gather them on random-gpt2"):
        token_view(tiny, TEXTS[0], others)


def test_the_heatmap_is_the_plots_one(monkeypatch):
    monkeypatch.setattr("toxloc.plots.token_heatmap", lambda *args: args)
    view = TokenView("a", ["a"], np.zeros((1, 1)), None)
    assert view.heatmap() == (view, "attribution", True)
    assert view.heatmap("activation", masked=False) == (view, "activation", False)


@pytest.mark.parametrize("skip_first", [True, False])
def test_driving_texts_are_those_of_run_with_cache_text_by_text(any_family, skip_first, monkeypatch):
    lm, layer, neuron = any_family, 1, 11
    monkeypatch.setitem(toxloc.models.batching.TOKENS_PER_BATCH, "cpu", 30)  # several batches, some of several texts
    peaks = []
    for i, text in enumerate(TEXTS):
        ids = ids_of(lm, text)
        _, cache = lm.hooked.run_with_cache(ids, attention_mask=torch.ones_like(ids))
        a = cache[lm.neuron_hook(layer)].detach().view(ids.shape[1], -1)[:, neuron]
        position = max(range(int(skip_first), len(a)), key=lambda t, a=a: a[t])
        peaks.append((a[position].item(), i, position, lm.tokenizer.decode(ids[0, [position]])))
    peaks.sort(reverse=True)
    found = driving_texts(lm, TEXTS, layer, neuron, k=3, skip_first=skip_first)
    assert [(d.index, d.position, d.token, d.text) for d in found] == [
        (i, position, token, TEXTS[i]) for _, i, position, token in peaks[:3]]
    assert [d.activation for d in found] == pytest.approx([a for a, *_ in peaks[:3]], rel=1e-4, abs=1e-6)


def test_of_equal_texts_the_first_comes_first_and_fewer_come_back_if_there_are_fewer(tiny):
    found = driving_texts(tiny, [TEXTS[0], TEXTS[1], TEXTS[0]], 0, 3, k=9)
    assert len(found) == 3
    assert [d.index for d in found if d.text == TEXTS[0]] == [0, 2]
    assert driving_texts(tiny, TEXTS, 0, 3, max_length=1) == []


def test_driven_prints_masked_and_keeps_raw(tiny):
    found, = driving_texts(tiny, ["You are a fool."], 0, 3)
    assert found.shown(masked=False) == found.text == "You are a fool."
    assert found.shown() == "Y·· a·· a f···."
    assert "fool" not in repr(found) + str(found)
    assert "Y·· a·· a f···." in repr(found)


@pytest.mark.parametrize(("how", "words"), [
    (dict(texts=[], layer=0, neuron=0), "1 of 0 texts"), (dict(texts=TEXTS, layer=0, neuron=0, k=0), "0 of 5 texts"),
    (dict(texts=TEXTS, layer=2, neuron=0), r"No \(2, 0\)"), (dict(texts=["fine", ""], layer=0, neuron=0), "is empty"),
])
def test_driving_texts_names_what_cannot_be(tiny, how, words):
    with pytest.raises(ToxlocError, match=words):
        driving_texts(tiny, **{"k": 1} | how)


def test_sentencepiece_tokens_keep_the_space_before_a_word(tiny):
    inner = Tokenizer(models.BPE({"<unk>": 0, "▁bad": 1, "bad": 2, "▁": 3}, [], unk_token="<unk>"))
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tiny.tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    assert tiny.tokenizer.decode([1]) == "bad"
    assert set(promoted_tokens(tiny, [(0, 0)], k=4)[0].tokens) == {"<unk>", " bad", "bad", " "}
