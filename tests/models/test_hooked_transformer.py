"""With transformer-lens 3.9, HookedTransformer is compared with the bridge; with 4, only its absence is tested."""

import gc
import weakref

import numpy as np
import pytest
import torch

import toxloc
from benchmarks.families import DENSE
from tests.conftest import TEXTS, bits, random_hf, same_bits, tokenizer
from tests.localization.prefixes_by_hand import PAIRS as SHARED
from toxloc import ContrastSet, LoadedModel, Meow2X, NeutralText, ToxlocError
from toxloc.interventions.methods.trne import TRNE
from toxloc.localization.first_difference import first_differences
from toxloc.localization.pair_batch import PairReader
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
OTHERS = sorted({*DENSE} - {*KNOWN})
PARTS = ("mlp", "attention")
with_class = pytest.mark.skipif(not has_hooked_transformer(), reason="needs transformer-lens 3.9")


def both_ways(family):
    """The same model with a HookedTransformer and with a bridge."""
    return [
        LoadedModel.from_hf(random_hf(family), tokenizer(), family, hooks=hooks) for hooks in ("transformer", "bridge")
    ]


@pytest.mark.skipif(has_hooked_transformer(), reason="needs transformer-lens 4")
def test_without_the_class_a_model_has_a_bridge():
    assert LoadedModel.from_hf(random_hf(), tokenizer()).is_bridge
    with pytest.raises(ToxlocError, match=r"transformer-lens==3\.9"):
        LoadedModel.from_hf(random_hf(), tokenizer(), hooks="transformer")


def test_an_unknown_kind_of_hooks_is_named():
    with pytest.raises(ToxlocError, match="hooks='lens'"):
        LoadedModel.from_hf(random_hf(), tokenizer(), hooks="lens")


def test_an_unsupported_type_of_model_is_named():
    with pytest.raises(ToxlocError, match=r"type Linear; .*load_model"):
        LoadedModel.of(torch.nn.Linear(2, 2))


@with_class
def test_the_class_is_the_default():
    from transformer_lens import HookedTransformer

    assert isinstance(toxloc.load_model("toxloc-tiny").hooked, HookedTransformer)


@with_class
@pytest.mark.parametrize("family", OTHERS)
def test_a_family_that_the_class_does_not_support_has_a_bridge(family):
    assert LoadedModel.from_hf(random_hf(family), tokenizer()).is_bridge
    with pytest.raises(ToxlocError, match="hooks='bridge'"):
        LoadedModel.from_hf(random_hf(family), tokenizer(), hooks="transformer")


@with_class
@pytest.mark.parametrize("family", KNOWN)
def test_scores_and_edits_equal_those_of_the_bridge(family):
    transformer, bridge = both_ways(family)
    assert not transformer.is_bridge and bridge.is_bridge
    scores = ("activation", "gradient_norm", "attribution", "combined", "auroc", "editability")
    results = [toxloc.localize(lm, PAIRS, scores, parts=PARTS, draws=20) for lm in (transformer, bridge)]
    for score in scores:
        for part in PARTS:
            for values_of in (toxloc.Localization.layer_scores, toxloc.Localization.neuron_scores):
                values, expected = (values_of(result, score, part) for result in results)
                np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    edits = [TRNE.fit(lm, PAIRS, norm=0.05, sites="all", neutral=NEUTRAL) for lm in (transformer, bridge)]
    with edits[0].applied(transformer), edits[1].applied(bridge):
        for site in transformer.sites():
            block, weight = transformer.hooked.blocks[site.layer], transformer.down_projection(site).weight
            hooked = block.mlp.W_out if site.part == "mlp" else block.attn.W_O.flatten(0, 1)
            assert torch.equal(hooked, weight if family == "gpt2" else weight.T)
            torch.testing.assert_close(hooked, bridge.W_out(site), rtol=0, atol=1e-4)
    turned_down = [Meow2X.fit(lm, PAIRS, budget=0.5, sites="all", neutral=NEUTRAL) for lm in (transformer, bridge)]
    assert turned_down[0].units.keys() == turned_down[1].units.keys()


@with_class
def test_faithfulness_equals_that_of_the_bridge():
    models = both_ways("gpt2")
    loc = toxloc.localize(models[1], SHARED, ("counterfactual",), parts=PARTS, draws=0)
    usable = first_differences(models[1], SHARED).usable
    pairs = PairReader(models[1], usable, "zero", "first", skip_first=False).batch(list(range(len(usable))))
    everything = [(site, unit) for site in models[1].sites(*PARTS) for unit in range(models[1].at(site).n_units)]
    with torch.no_grad():
        gap = pairs.difference()
        with Meow2X(neurons=everything, scale=0.0).applied(models[1]):
            gap = gap - pairs.difference()
    # Each pair is turned so that the units push towards its toxic side.
    sides = [(SHARED.toxic[pair.pair], SHARED.neutral[pair.pair]) for pair in usable]
    turned = [side if one > 0 else side[::-1] for side, one in zip(sides, gap.tolist(), strict=True)]
    favoured = ContrastSet([side[0] for side in turned], [side[1] for side in turned], paired=True)
    results = [
        toxloc.faithfulness(lm, favoured, loc, shares=(0.2, 1), by="zero", skip_first=False, draws=20) for lm in models
    ]
    for values, expected in zip(results[0].curves, results[1].curves, strict=True):
        np.testing.assert_allclose(values.faithfulness, expected.faithfulness, rtol=2e-3, atol=2e-3)


@with_class
@pytest.mark.parametrize("family", KNOWN)
def test_first_differences_equal_those_of_the_bridge(family):
    transformer, bridge = both_ways(family)
    results = [toxloc.localize(lm, SHARED, ("counterfactual",), parts=PARTS, draws=0) for lm in (transformer, bridge)]
    for part in PARTS:
        values, expected = (result.neuron_scores("counterfactual", part) for result in results)
        np.testing.assert_allclose(values, expected, rtol=2e-3, atol=1e-3 * np.abs(expected).max())
    for parts in (transformer.sites(), [(0, 3), (Site(1, "attention"), 1)]):
        for by in ("mean", "counterfactual", "resample", "zero"):
            # BLOOM norms its embeddings, and hook_embed of a HookedTransformer comes after this norm.
            for method in ("exact", "attribution", "integrated")[: 2 if family == "bloom" else 3]:
                values, expected = (
                    toxloc.patch(lm, SHARED, parts, by, method=method, steps=2, draws=0).effect
                    for lm in (transformer, bridge)
                )
                np.testing.assert_allclose(values, expected, rtol=2e-3, atol=1e-3 * np.abs(expected).max())


@with_class
@pytest.mark.parametrize("family", KNOWN)
@pytest.mark.parametrize("mode", ["hooks", "weights"])
def test_both_trees_of_a_model_are_turned_down_alike_and_restored(family, mode):
    lm = LoadedModel.from_hf(random_hf(family), tokenizer(), hooks="transformer")
    before, batch = bits(lm), next(batches(lm, TEXTS))
    plain = lm.forward(batch.ids, batch.mask)
    units = [(0, 3), (1, 7), ("0.attention", 1)]
    with (
        Meow2X(neurons=units, scale=0.0, mode=mode).applied(lm),
        Meow2X(layers=[1, "1.attention"], scale=0.5, mode=mode).applied(lm),
    ):
        hooked = lm.forward(batch.ids, batch.mask)
        expected = lm.hf(input_ids=batch.ids, attention_mask=batch.mask).logits
    torch.testing.assert_close(hooked[batch.real], expected[batch.real], rtol=1e-4, atol=1e-4)
    assert (hooked - plain)[batch.real].abs().max() > 1e-3
    assert same_bits(before, lm)
    assert torch.equal(lm.forward(batch.ids, batch.mask), plain)


@with_class
def test_a_hooked_transformer_of_the_user_is_supported():
    """It has the same scores, edits and reverts, and an error says if an operation needs the Hugging Face model."""
    full = LoadedModel.from_hf(random_hf("llama"), tokenizer(), hooks="transformer")
    users_model = LoadedModel.from_hf(random_hf("llama"), tokenizer(), hooks="transformer").hooked
    result, expected = (toxloc.localize(model, PAIRS, parts=PARTS, draws=0) for model in (users_model, full))
    for score in expected.scores:
        for part in PARTS:
            np.testing.assert_allclose(
                result.neuron_scores(score, part), expected.neuron_scores(score, part), rtol=1e-3, atol=1e-7
            )
    ids = torch.tensor([tokenizer()("The weather in the north was")["input_ids"]])
    plain = users_model(ids)
    for fit in (
        lambda: TRNE.fit(users_model, PAIRS, budget=0.05, neutral=NEUTRAL),
        lambda: Meow2X.fit(users_model, PAIRS, budget=0.5, neutral=NEUTRAL),
        lambda: Meow2X(layers=[0], scale=0.5),
        lambda: Meow2X(neurons=[("1.attention", 0)], scale=0.5),
    ):
        edit = fit()
        with edit.applied(users_model):
            assert (users_model(ids) - plain).abs().max() > 1e-4
        assert torch.equal(users_model(ids), plain)
    with pytest.raises(ToxlocError, match="sampling needs the Hugging Face model"):
        toxloc.evaluate(LoadedModel.of(users_model), toxloc.PromptSet(["Hello there"]), fluency=False)


@with_class
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_folded_layer_norms_change_no_attribution(family):
    """Folding moves the weights of the norms into other weights, but does not change the contribution of a layer."""
    plain, folded = (LoadedModel.from_hf(random_hf(family), tokenizer(), hooks="transformer").hooked for _ in range(2))
    state = {name: weight.clone() for name, weight in folded.state_dict().items()}
    folded.load_state_dict(state, assign=True)  # separate weights, as in a model of the user
    folded.load_and_process_state_dict(
        state, fold_ln=True, center_writing_weights=family == "gpt2", center_unembed=True
    )
    assert "Pre" in type(folded.ln_final).__name__
    result, expected = (toxloc.localize(model, PAIRS, ("attribution",), draws=0) for model in (folded, plain))
    np.testing.assert_allclose(result.layer_scores("attribution"), expected.layer_scores("attribution"), rtol=1e-4)
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
def test_a_hooked_transformer_of_the_user_is_not_changed(family):
    users_model = LoadedModel.from_hf(random_hf(family), tokenizer(), hooks="transformer").hooked
    weights = {name: weight.clone() for name, weight in users_model.state_dict().items()}
    before = traces(users_model)
    lm = LoadedModel.of(users_model)
    assert lm.sites() == [Site(layer, part) for layer in range(2) for part in PARTS]
    toxloc.localize(lm, PAIRS, ("activation", "attribution", "auroc"), parts=PARTS, draws=0)
    for edit in (
        Meow2X(layers=[0, "0.attention"], neurons=[(1, 3), ("1.attention", 1)], scale=0.5),
        TRNE.fit(users_model, PAIRS, norm=0.05, sites="all", neutral=NEUTRAL),
    ):
        with edit.applied(users_model):
            assert lm.interventions == [edit]
    assert lm.interventions == []
    assert traces(users_model) == before
    assert all(torch.equal(weight, weights[name]) for name, weight in users_model.state_dict().items())


@with_class
def test_a_wrapped_model_can_be_garbage_collected():
    model = LoadedModel.from_hf(random_hf(), tokenizer(), hooks="transformer").hooked
    assert LoadedModel.of(model) is LoadedModel.of(model)
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


@with_class
def test_a_hooked_transformer_without_a_tokenizer_is_named():
    model = LoadedModel.from_hf(random_hf(), tokenizer(), hooks="transformer").hooked
    model.tokenizer = None
    with pytest.raises(ToxlocError, match="set_tokenizer"):
        toxloc.localize(model, PAIRS)
