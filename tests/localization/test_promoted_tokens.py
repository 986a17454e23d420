import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from benchmarks.families import DENSE, LAYOUTS
from tests.conftest import random_hf, random_model, tokenizer
from tests.models.test_hooked_transformer import with_class
from toxloc import Site, ToxlocError, collect_contrast
from toxloc.localization.promoted_tokens import promoted_tokens
from toxloc.models.loaded import LoadedModel
from toxloc.support.masking import mask

from .by_hand import rows_of
from .prefixes_by_hand import PAIRS

HEAD = (Site(1, "attention"), 1)


def with_random_norms(family, **sizes):
    """Return a random float32 model whose norms have random gains, without a soft cap of the logits."""
    hf = random_hf(family, **sizes)
    with torch.no_grad():
        for p in hf.parameters():
            if p.ndim == 1:
                p.add_(0.5 * torch.randn(p.shape))
    if hasattr(hf.config, "final_logit_softcapping"):
        hf.config.final_logit_softcapping = None
    return LoadedModel.from_hf(hf, tokenizer(), f"random-{family}")


def derivative_of_logits(lm, neuron):
    """Return d logits / d activation of a neuron of the last layer, times the divisors of the norms, from the model.

    The MLP's output and the residual stream are set to vectors orthogonal to the output of the neuron, where the
    divisor of a norm does not change to first order. The result is therefore exact, and does not depend on knowledge
    of the places or gains of the norms.
    """
    layer = lm.n_layers - 1
    centred = "bias" in dict(lm.final_norm.named_parameters())

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

        block = lm.block(lm.n_layers - 1)
        handles = [lm.down_projection(layer).register_forward_hook(on_mlp), block.register_forward_hook(on_block)]
        try:
            return lm.hf(input_ids=torch.tensor([[5, 6]]), use_cache=False).logits[0, -1]
        finally:
            for handle in handles:
                handle.remove()

    def slope(function):  # not torch.func.jvp, which bloom's custom activation function does not support
        return torch.autograd.functional.jvp(function, torch.zeros(()), torch.ones(()))[1]

    divisor = 1.0
    direction = row
    if lm.contribution(layer) is not lm.down_projection(layer):  # a norm between the MLP and the residual stream
        divisor = m.pow(2).mean().sqrt()
        direction = slope(lambda h: lm.contribution(layer)(m + h * row))
    logits(torch.zeros(()))
    stream["x"] = orthogonal(direction)
    divisor = divisor * stream["x"].pow(2).mean().sqrt()
    return slope(logits) * divisor


@pytest.mark.parametrize("family", sorted(DENSE))
def test_promoted_tokens_have_the_steepest_logits_of_the_model(family):
    lm = with_random_norms(family)
    truth = derivative_of_logits(lm, 7)
    for sign in (1, -1):
        (promoted,) = promoted_tokens(lm, [(1, 7)], k=5, sign=sign)
        order = (sign * truth).argsort(descending=True)[:5].tolist()
        assert promoted.tokens == [lm.tokenizer.decode([i]) for i in order]
        np.testing.assert_allclose(promoted.scores, truth[order], rtol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_results_follow_the_given_layers_and_neurons(family):
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


def test_an_opt_without_a_final_norm_is_an_error():
    lm = random_model("opt", do_layer_norm_before=False)
    with pytest.raises(ToxlocError, match="random-opt has no norm between its last block and its unembedding"):
        promoted_tokens(lm, [(0, 0)])


def test_padding_rows_of_the_unembedding_are_not_tokens(tiny):
    tiny.hf.lm_head.weight[100:] *= 1000
    tiny.tokenizer.__class__ = type("Short", (tiny.tokenizer.__class__,), {"__len__": lambda self: 100})
    everything = {tiny.tokenizer.decode([i]) for i in range(100)}
    assert set(promoted_tokens(tiny, [(0, 0)], k=100)[0].tokens) == everything
    with pytest.raises(ToxlocError, match=r"k=101: .* 1 to 100, .* random-gpt2"):
        promoted_tokens(tiny, [(0, 0)], k=101)


def test_half_precision_models_are_scored_in_float32():
    lm = random_model("llama", dtype=torch.bfloat16)
    row, gain = lm.W_out(1)[2].float(), lm.hf.model.norm.weight.float()
    expected = (lm.hf.lm_head.weight.float() @ (row * gain)).max()
    assert promoted_tokens(lm, [(1, 2)], k=1)[0].scores[0] == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("family", sorted(LAYOUTS))
def test_a_head_promotes_what_it_writes_more_on_toxic_than_on_neutral_text(family):
    """Its tokens are those of a neuron whose row of W_out is this direction and whose norms are those of the head."""
    lm = with_random_norms(family)
    toxic, neutral = (rows_of(lm, side, HEAD[0])[0].mean(0) for side in (PAIRS.toxic, PAIRS.neutral))
    written = (toxic - neutral)[8:16].float() @ lm.W_out(HEAD[0])[8:16]
    (promoted,) = promoted_tokens(lm, [HEAD], k=5, contrast=PAIRS)
    with torch.no_grad():
        lm.W_out(1)[7] = written
        if lm.at(1).norm is not None:
            lm.contribution(1).weight.copy_(lm.contribution(HEAD[0]).weight)
    truth = derivative_of_logits(lm, 7)
    order = truth.argsort(descending=True)[:5].tolist()
    assert promoted.tokens == [lm.tokenizer.decode([i]) for i in order]
    np.testing.assert_allclose(promoted.scores, truth[order], rtol=1e-3)
    assert (promoted.site, promoted.neuron) == HEAD


def test_statistics_of_a_contrast_can_be_used_again(tiny):
    s = collect_contrast(tiny, PAIRS, sites=tiny.sites(), gradients=False)
    units = [(0, 3), HEAD, ("1.attention", 0)]
    for again, expected in zip(
        promoted_tokens(tiny, units, contrast=s), promoted_tokens(tiny, units, contrast=PAIRS), strict=True
    ):
        assert (again.tokens, again.site) == (expected.tokens, expected.site)
        np.testing.assert_allclose(again.scores, expected.scores, rtol=1e-5)
    neuron, head, _ = promoted_tokens(tiny, units, contrast=s)
    assert list(head.to_frame().columns) == ["layer", "head", "token", "score"]
    assert "layer 1, attention, head 1" in repr(head) and "layer 0, neuron 3" in repr(neuron)


def test_a_head_needs_texts(tiny):
    with pytest.raises(ToxlocError, match=r"layer 1, attention has heads.* give contrast=pairs"):
        promoted_tokens(tiny, [HEAD])
    with pytest.raises(ToxlocError, match=r"The statistics lack layer 1, attention; collect them with sites="):
        promoted_tokens(tiny, [HEAD], contrast=collect_contrast(tiny, PAIRS, gradients=False))
    with pytest.raises(ToxlocError, match="have no moments"):
        promoted_tokens(tiny, [HEAD], contrast=collect_contrast(tiny, PAIRS, sites=[HEAD[0]], moments=False))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(neurons=[(2, 0)]), "There is no layer 2 in random-gpt2; it has layers 0 to 1"),
        (dict(neurons=[(0, 64)]), "There is no neuron 64 in layer 0 of random-gpt2; it has neurons 0 to 63"),
        (dict(neurons=[(0, -1)]), "There is no neuron -1 in layer 0"),
        (dict(neurons=[], k=0), "k=0"),
        (dict(neurons=[], sign=0), "sign=0"),
    ],
)
def test_impossible_neurons_and_counts_are_named(tiny, arguments, message):
    with pytest.raises(ToxlocError, match=message):
        promoted_tokens(tiny, **arguments)


def test_promoted_is_printed_masked_and_keeps_the_tokens(tiny):
    (promoted,) = promoted_tokens(tiny, [(0, 1)], k=40)
    raw = [token for token in promoted.tokens if mask(token) != token]
    assert raw
    assert promoted.shown() == [mask(token) for token in promoted.tokens] == list(promoted.to_frame()["token"])
    assert promoted.shown(masked=False) == promoted.tokens == list(promoted.to_frame(masked=False)["token"])
    assert all(repr(token) not in repr(promoted) + str(promoted) for token in raw)
    assert list(promoted.to_frame().columns) == ["layer", "neuron", "token", "score"]
    assert promoted.scores.dtype == np.float64


def test_sentencepiece_tokens_keep_the_space_before_a_word(tiny):
    inner = Tokenizer(models.BPE({"<unk>": 0, "▁bad": 1, "bad": 2, "▁": 3}, [], unk_token="<unk>"))
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tiny.tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    assert tiny.tokenizer.decode([1]) == "bad"
    assert set(promoted_tokens(tiny, [(0, 0)], k=4)[0].tokens) == {"<unk>", " bad", "bad", " "}


@with_class
@pytest.mark.parametrize("family", ["gpt2", "llama"])  # a LayerNorm and an RMSNorm
def test_a_hooked_transformer_without_hugging_face_gives_the_same_tokens(family):
    hf = with_random_norms(family).hf
    full = LoadedModel.from_hf(hf, tokenizer(), hooks="transformer")
    alone = LoadedModel.of(full.hooked)
    assert alone.hf is None
    for sign in (1, -1):
        pairs = zip(
            promoted_tokens(alone, [(0, 3), (1, 5)], sign=sign),
            promoted_tokens(full, [(0, 3), (1, 5)], sign=sign),
            strict=True,
        )
        for promoted, expected in pairs:
            assert promoted.tokens == expected.tokens
            np.testing.assert_allclose(promoted.scores, expected.scores, rtol=1e-5)
