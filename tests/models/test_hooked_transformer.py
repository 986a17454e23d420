"""With transformer-lens 3.9 everything is compared with the bridge; with 4, only that the missing class is told of."""

import gc
import weakref

import numpy as np
import pytest
import torch

import toxloc
from benchmarks.families import SIZES
from tests.conftest import TEXTS, bits, random_hf, same_bits, tokenizer
from toxloc import ContrastSet, LoadedModel, Meow2X, NeutralText, ToxlocError
from toxloc.interventions.methods.trne import TRNE
from toxloc.models.batching import batches
from toxloc.models.hooked_transformer import has_hooked_transformer
from toxloc.models.sites import Site

PAIRS = ContrastSet(TEXTS[:3], [*TEXTS[3:], "What a lovely morning it is."])
NEUTRAL = NeutralText(
    *(
        [f"The {word} stood beside the {noun} for a long time." for word in ("cat", "chair", "boy")]
        for noun in ("house", "road", "sea")
    )
)
KNOWN = ["gpt2", "gpt_neo", "gpt_neox", "opt", "bloom", "llama", "mistral", "qwen2", "qwen3", "phi3"]
OTHERS = sorted({*SIZES} - {*KNOWN})
PARTS = ("mlp", "attention")
with_class = pytest.mark.skipif(not has_hooked_transformer(), reason="needs transformer-lens 3.9")


def both_ways(family):
    """One model under each kind of hooks."""
    return [
        LoadedModel.from_hf(random_hf(family), tokenizer(), family, hooks=hooks) for hooks in ("transformer", "bridge")
    ]


@pytest.mark.skipif(has_hooked_transformer(), reason="needs transformer-lens 4")
def test_without_the_class_a_model_comes_with_a_bridge():
    assert LoadedModel.from_hf(random_hf(), tokenizer()).is_bridge
    with pytest.raises(ToxlocError, match=r"transformer-lens==3\.9"):
        LoadedModel.from_hf(random_hf(), tokenizer(), hooks="transformer")


def test_an_unknown_kind_of_hooks_is_named():
    with pytest.raises(ToxlocError, match="hooks='lens'"):
        LoadedModel.from_hf(random_hf(), tokenizer(), hooks="lens")


def test_what_is_no_model_is_named():
    with pytest.raises(ToxlocError, match="A Linear is not a model that toxloc takes"):
        LoadedModel.of(torch.nn.Linear(2, 2))


@with_class
def test_the_class_comes_by_default():
    from transformer_lens import HookedTransformer

    assert isinstance(toxloc.load_model("toxloc-tiny").hooked, HookedTransformer)


@with_class
@pytest.mark.parametrize("family", OTHERS)
def test_a_family_that_the_class_lacks_comes_with_a_bridge(family):
    assert LoadedModel.from_hf(random_hf(family), tokenizer()).is_bridge
    with pytest.raises(ToxlocError, match="hooks='bridge'"):
        LoadedModel.from_hf(random_hf(family), tokenizer(), hooks="transformer")


@with_class
@pytest.mark.parametrize("family", KNOWN)
def test_scores_and_edits_are_those_of_the_bridge(family):
    one, other = both_ways(family)
    assert not one.is_bridge
    scores = ("activation", "gradient_norm", "attribution", "combined", "auroc", "editability")
    found, expected = (toxloc.localize(lm, PAIRS, scores, parts=PARTS, draws=20) for lm in (one, other))
    for score in scores:
        for part in PARTS:
            for values_of in (toxloc.Localization.layer_scores, toxloc.Localization.neuron_scores):
                ours, theirs = (values_of(loc, score, part) for loc in (found, expected))
                np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())
    edit, same = (TRNE.fit(lm, PAIRS, norm=0.05, sites="all", neutral=NEUTRAL) for lm in (one, other))
    with edit.applied(one), same.applied(other):
        for site in one.sites():
            block, own = one.hooked.blocks[site.layer], one.down_projection(site).weight
            hooked = block.mlp.W_out if site.part == "mlp" else block.attn.W_O.flatten(0, 1)
            assert torch.equal(hooked, own if family == "gpt2" else own.T)
            torch.testing.assert_close(hooked, other.W_out(site), rtol=0, atol=1e-4)
    turned, same_turned = (Meow2X.fit(lm, PAIRS, budget=0.5, sites="all", neutral=NEUTRAL) for lm in (one, other))
    assert turned.units.keys() == same_turned.units.keys()


@with_class
@pytest.mark.parametrize("family", KNOWN)
@pytest.mark.parametrize("mode", ["hooks", "weights"])
def test_both_sides_of_a_model_are_turned_down_alike_and_come_back(family, mode):
    lm = LoadedModel.from_hf(random_hf(family), tokenizer(), hooks="transformer")
    before, batch = bits(lm), next(batches(lm, TEXTS))
    plain = lm.forward(batch.ids, batch.mask)
    units = [(0, 3), (1, 7), ("0.attention", 1)]
    with (
        Meow2X(neurons=units, scale=0.0, mode=mode).applied(lm),
        Meow2X(layers=[1, "1.attention"], scale=0.5, mode=mode).applied(lm),
    ):
        ours = lm.forward(batch.ids, batch.mask)
        theirs = lm.hf(input_ids=batch.ids, attention_mask=batch.mask).logits
    torch.testing.assert_close(ours[batch.real], theirs[batch.real], rtol=1e-4, atol=1e-4)
    assert (ours - plain)[batch.real].abs().max() > 1e-3
    assert same_bits(before, lm)
    assert torch.equal(lm.forward(batch.ids, batch.mask), plain)


@with_class
def test_a_users_own_hooked_transformer_is_taken():
    """Without a Hugging Face model beside it: the same scores, edits and reverts, and a clear word where it lacks."""
    full = LoadedModel.from_hf(random_hf("llama"), tokenizer(), hooks="transformer")
    own = LoadedModel.from_hf(random_hf("llama"), tokenizer(), hooks="transformer").hooked
    found, expected = (toxloc.localize(model, PAIRS, parts=PARTS, draws=0) for model in (own, full))
    for score in expected.scores:
        for part in PARTS:
            np.testing.assert_allclose(
                found.neuron_scores(score, part), expected.neuron_scores(score, part), rtol=1e-3, atol=1e-7
            )
    ids = torch.tensor([tokenizer()("The weather in the north was")["input_ids"]])
    plain = own(ids)
    for fit in (
        lambda: TRNE.fit(own, PAIRS, budget=0.05, neutral=NEUTRAL),
        lambda: Meow2X.fit(own, PAIRS, budget=0.5, neutral=NEUTRAL),
        lambda: Meow2X(layers=[0], scale=0.5),
        lambda: Meow2X(neurons=[("1.attention", 0)], scale=0.5),
    ):
        edit = fit()
        with edit.applied(own):
            assert (own(ids) - plain).abs().max() > 1e-4
        assert torch.equal(own(ids), plain)
    with pytest.raises(ToxlocError, match="sampling needs the Hugging Face model"):
        toxloc.evaluate(LoadedModel.of(own), toxloc.PromptSet(["Hello there"]), fluency=False)


@with_class
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_folded_layer_norms_change_no_attribution(family):
    """Folding moves the norms' gains into other weights; what a layer contributes stays."""
    plain, folded = (LoadedModel.from_hf(random_hf(family), tokenizer(), hooks="transformer").hooked for _ in range(2))
    state = {name: weight.clone() for name, weight in folded.state_dict().items()}
    folded.load_state_dict(state, assign=True)  # weights of its own, as a user's have
    folded.load_and_process_state_dict(
        state, fold_ln=True, center_writing_weights=family == "gpt2", center_unembed=True
    )
    assert "Pre" in type(folded.ln_final).__name__
    found, expected = (toxloc.localize(model, PAIRS, ("attribution",), draws=0) for model in (folded, plain))
    np.testing.assert_allclose(found.layer_scores("attribution"), expected.layer_scores("attribution"), rtol=1e-4)
    ids = torch.tensor([tokenizer()("The weather in the north was")["input_ids"]])
    before = folded(ids)
    with TRNE.fit(folded, PAIRS, budget=0.05, neutral=NEUTRAL).applied(folded):
        assert (folded(ids) - before).abs().max() > 1e-3
    assert torch.equal(folded(ids), before)


def traces(model):
    """Everything that a wrapper could leave behind: attributes, hook points and hooks, module by module."""
    return (
        {
            name: (
                sorted(vars(module)),
                sorted(module._modules),
                len(module._forward_hooks),
                len(module._forward_pre_hooks),
                len(module._backward_hooks),
                type(module),
            )
            for name, module in model.named_modules()
        },
        sorted(model.hook_dict),
        sorted(model.mod_dict),
    )


@with_class
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_users_own_hooked_transformer_is_left_as_it_was(family):
    own = LoadedModel.from_hf(random_hf(family), tokenizer(), hooks="transformer").hooked
    weights = {name: weight.clone() for name, weight in own.state_dict().items()}
    before = traces(own)
    lm = LoadedModel.of(own)
    assert lm.sites() == [Site(layer, part) for layer in range(2) for part in PARTS]
    toxloc.localize(lm, PAIRS, ("activation", "attribution", "auroc"), parts=PARTS, draws=0)
    for edit in (
        Meow2X(layers=[0, "0.attention"], neurons=[(1, 3), ("1.attention", 1)], scale=0.5),
        TRNE.fit(own, PAIRS, norm=0.05, sites="all", neutral=NEUTRAL),
    ):
        with edit.applied(own):
            assert lm.interventions == [edit]
    assert lm.interventions == []
    assert traces(own) == before
    assert all(torch.equal(weight, weights[name]) for name, weight in own.state_dict().items())


@with_class
def test_a_wrapped_model_can_be_forgotten():
    own = LoadedModel.from_hf(random_hf(), tokenizer(), hooks="transformer").hooked
    assert LoadedModel.of(own) is LoadedModel.of(own)
    watched = weakref.ref(own)
    del own
    gc.collect()
    assert watched() is None


@with_class
def test_a_hooked_transformer_without_a_tokenizer_is_named():
    own = LoadedModel.from_hf(random_hf(), tokenizer(), hooks="transformer").hooked
    own.tokenizer = None
    with pytest.raises(ToxlocError, match="set_tokenizer"):
        toxloc.localize(own, PAIRS)
