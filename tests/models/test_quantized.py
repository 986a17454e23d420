"""Quantized models: localization, hooks, and TRNE, whose change is added to what the quantized maps return."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, OPTConfig, OPTForCausalLM

import toxloc
from tests.conftest import random_hf, random_model, tokenizer
from toxloc import TRNE, AurA, Chain, Meow2X, ProFS, Steering, ToxlocError
from toxloc.evaluation.cost.perplexity import mean_nll
from toxloc.interventions.export import export_hf, export_peft
from toxloc.interventions.rank_one import RankOne
from toxloc.models import quantized
from toxloc.models.loaded import LoadedModel
from toxloc.models.quantized import dequantized, is_quantized, plain_tensors, without_weights
from toxloc.models.settings import QUANTIZATIONS

LIBRARIES = {"torchao-int8": "torchao", "bnb-8bit": "bitsandbytes", "bnb-4bit": "bitsandbytes"}
INSTALLED = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            quantized.find_spec(library) is None,
            reason=f"{library} is not installed ('toxloc[quantized]' brings torchao)",
        ),
    )
    for name, library in LIBRARIES.items()
]
STEP = {"torchao-int8": 0.01, "bnb-8bit": 0.01, "bnb-4bit": 0.15}  # largest error of a weight, relative to the largest


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """toxloc-tiny in the layout of OPT, because torchao leaves the maps of GPT-2 as they are."""
    gpt2 = toxloc.load_model(device="cpu").hf
    width = gpt2.config.n_embd
    config = OPTConfig(
        vocab_size=gpt2.config.vocab_size,
        hidden_size=width,
        word_embed_proj_dim=width,
        ffn_dim=4 * width,
        num_hidden_layers=gpt2.config.n_layer,
        num_attention_heads=gpt2.config.n_head,
        max_position_embeddings=gpt2.config.n_positions,
        activation_function=gpt2.config.activation_function,
        bos_token_id=gpt2.config.bos_token_id,
        eos_token_id=gpt2.config.eos_token_id,
        pad_token_id=gpt2.config.eos_token_id,
    )
    opt = OPTForCausalLM(config)
    decoder, old = opt.model.decoder, gpt2.transformer
    with torch.no_grad():
        decoder.embed_tokens.weight.copy_(old.wte.weight)
        decoder.embed_positions.weight[2:].copy_(old.wpe.weight)
        decoder.final_layer_norm.load_state_dict(old.ln_f.state_dict())
        for block, layer in zip(old.h, decoder.layers, strict=True):
            layer.self_attn_layer_norm.load_state_dict(block.ln_1.state_dict())
            layer.final_layer_norm.load_state_dict(block.ln_2.state_dict())
            attention = layer.self_attn
            maps = [
                (attention.out_proj, block.attn.c_proj.weight, block.attn.c_proj.bias),
                (layer.fc1, block.mlp.c_fc.weight, block.mlp.c_fc.bias),
                (layer.fc2, block.mlp.c_proj.weight, block.mlp.c_proj.bias),
            ]
            joint = block.attn.c_attn.weight.split(width, 1), block.attn.c_attn.bias.split(width)
            maps += zip((attention.q_proj, attention.k_proj, attention.v_proj), *joint, strict=True)
            for linear, weight, bias in maps:
                linear.weight.copy_(weight.T)
                linear.bias.copy_(bias)
    place = tmp_path_factory.mktemp("models") / "opt"
    opt.save_pretrained(place)
    tokenizer().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def pairs():
    return toxloc.load_contrast().limited(30)


@pytest.fixture(scope="module")
def neutral():
    return toxloc.load_neutral(limit=90)


@pytest.fixture(scope="module")
def plain(folder):
    return toxloc.load_model(str(folder), device="cpu")


@pytest.fixture(scope="module", params=INSTALLED)
def lm(request, folder):
    model = toxloc.load_model(str(folder), device="cpu", quantize=request.param)
    model.choice = request.param
    return model


@torch.no_grad()
def logits(lm, hooked=False):
    ids = torch.arange(3, 23)[None]
    mask = torch.ones_like(ids)
    return lm.forward(ids, mask) if hooked else lm.hf(input_ids=ids, attention_mask=mask).logits


def rank_one(lm, *sites, size=1 / 40):
    generator = torch.Generator().manual_seed(0)
    return TRNE(
        [
            RankOne(
                site,
                torch.randn(lm.at(site).d_in, generator=generator) * size,
                torch.randn(lm.d_model, generator=generator) * size,
            )
            for site in sites
        ]
    )


def contrast(lm, pairs):
    return mean_nll(lm, pairs.toxic, 64) - mean_nll(lm, pairs.neutral, 64)


def test_the_choices_are_those_of_the_settings():
    assert tuple(LIBRARIES) == QUANTIZATIONS


def test_a_quantized_model_is_recognised_and_its_weights_are_read(lm, plain):
    assert lm.is_quantized and not plain.is_quantized
    assert (lm.dtype, lm.d_model, lm.d_mlp, lm.device) == (plain.dtype, plain.d_model, plain.d_mlp, plain.device)
    assert lm.fingerprint != plain.fingerprint
    assert lm.current_fingerprint() == lm.fingerprint
    for site in (0, "3.attention"):
        W, expected = lm.W_out(site), plain.W_out(site)
        assert W.shape == expected.shape
        error = (W - expected).abs().max() / expected.abs().max()
        assert 0 < error < STEP[lm.choice]
        torch.testing.assert_close(lm.b_out(site), plain.b_out(site))


def test_a_weight_is_what_the_map_computes(lm):
    linear = lm.at(0).linear
    x = torch.randn(5, linear.in_features)
    expected = linear(x)
    actual = x @ dequantized(linear).T.to(x.dtype) + linear.bias
    assert (actual - expected).abs().max() < 0.02 * expected.abs().max()


def test_localization_is_close_to_that_of_the_model_in_float32(lm, plain, pairs):
    one, other = (toxloc.localize(model, pairs, draws=0) for model in (lm, plain))
    for name in one.scores:
        assert np.corrcoef(one.neuron_scores(name).ravel(), other.neuron_scores(name).ravel())[0, 1] > 0.9


@pytest.mark.parametrize(
    "make",
    [
        lambda lm: Meow2X(neurons=[(0, 3), (1, 5), ("2.attention", 1)], scale=0.0),
        lambda lm: Meow2X(layers=[2], scale=0.5),
        lambda lm: Steering(torch.eye(lm.d_model)[3], layer=1, strength=1.0),
        lambda lm: rank_one(lm, 0, 5, 5, "3.attention"),
        lambda lm: Chain([rank_one(lm, 2), Meow2X(neurons=[(2, 3)], scale=0.0)]),
    ],
)
def test_an_edit_acts_on_both_trees_and_is_reverted(lm, make):
    before = logits(lm)
    with make(lm).applied(lm):
        changed = logits(lm)
        assert (changed - before).abs().max() > 1e-3
        torch.testing.assert_close(logits(lm, hooked=True), changed, rtol=1e-3, atol=1e-3)
    assert torch.equal(logits(lm), before)


def test_a_rank_one_change_is_the_change_of_the_weights(lm, plain):
    """The change of the logits is that of the model in float32, up to the quantization."""
    # Large, because bitsandbytes rounds activations to 8 bits too, which alone changes logits by a few hundredths.
    edit = rank_one(lm, 0, 5, 5, "3.attention", size=1 / 4)
    changes = []
    for model in (lm, plain):
        before = logits(model)
        with edit.applied(model):
            changes.append((logits(model) - before).flatten())
    assert torch.nn.functional.cosine_similarity(*changes, dim=0) > (0.99 if "8" in lm.choice else 0.9)
    with edit.applied(lm):
        W = lm.W_out(5)
    u, v = edit.low_rank()[toxloc.models.sites.Site(5)]
    torch.testing.assert_close(W - lm.W_out(5), u.T @ v, rtol=1e-4, atol=1e-4)


def test_trne_is_fitted_on_the_quantized_model_and_leaves_as_an_adapter(lm, plain, pairs, neutral, folder, tmp_path):
    gains, edits = [], []
    for model in (plain, lm):
        edit, before = TRNE.fit(model, pairs, neutral=neutral, budget=0.02), contrast(model, pairs)
        assert 1 < edit.record["tuned_perplexity_ratio"] < 1.0201
        with edit.applied(model):
            gains.append(contrast(model, pairs) - before)
        edits.append(edit)
    assert gains[1] == pytest.approx(gains[0], rel=0.1)
    export_peft(edits[1], lm, tmp_path / "adapter")
    from peft import PeftModel

    with edits[1].applied(plain):
        expected = logits(plain)
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter")
    torch.testing.assert_close(adapted(torch.arange(3, 23)[None]).logits, expected, rtol=1e-4, atol=1e-4)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(folder)


def test_an_adapter_of_a_quantized_model_runs_on_it(lm, folder, tmp_path):
    from peft import PeftModel

    edit = rank_one(lm, 0, 5)
    export_peft(edit, lm, tmp_path / "adapter")
    with edit.applied(lm):
        expected = logits(lm)
    base = toxloc.load_model(str(folder), device="cpu", quantize=lm.choice).hf
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(adapted(torch.arange(3, 23)[None]).logits, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "make",
    [
        lambda lm: Meow2X(layers=[1], mode="weights"),
        lambda lm: Chain([rank_one(lm, 0), Meow2X(neurons=[(0, 3)], mode="weights")]),
        lambda lm: ProFS({0: torch.eye(lm.d_model)[:2]}),
        lambda lm: AurA(torch.full((lm.n_layers, 5 * lm.d_model), 0.5), mode="weights"),
    ],
)
def test_other_edits_of_quantized_weights_are_refused(lm, make):
    before = logits(lm)
    with pytest.raises(
        ToxlocError, match=r"opt is quantized, so its weights cannot be edited as .*mode='hooks'"
    ) as caught:
        make(lm).apply(lm)
    assert "\n" not in str(caught.value)
    assert torch.equal(logits(lm), before) and not lm.interventions


def test_a_quantized_model_cannot_be_saved_with_an_edit(lm, tmp_path):
    with rank_one(lm, 0).applied(lm), pytest.raises(ToxlocError, match=r"is quantized, so a saved model .* adapter"):
        export_hf(lm, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_quantized_folder_is_loaded_as_it_is(lm, tmp_path):
    export_hf(lm, tmp_path / "out")
    again = toxloc.load_model(str(tmp_path / "out"), device="cpu")
    assert again.is_quantized
    torch.testing.assert_close(logits(again), logits(lm), rtol=1e-3, atol=1e-3)
    with pytest.raises(ToxlocError, match=r"are quantized already, with \w+; leave quantize='torchao-int8' out"):
        toxloc.load_model(str(tmp_path / "out"), device="cpu", quantize="torchao-int8")


def test_a_copy_shares_the_quantized_weights_but_not_the_edits(lm):
    copied, before = lm.copy(), logits(lm)
    assert copied.at(0).linear.weight is lm.at(0).linear.weight
    with rank_one(lm, 0).applied(lm):
        assert torch.equal(logits(copied), before)
    assert torch.equal(logits(lm.copy()), before)


@pytest.mark.parametrize("choice", INSTALLED[:1])
def test_a_family_without_linear_maps_is_refused(choice):
    with pytest.raises(ToxlocError, match="quantizes no linear map of this gpt2 model; leave quantize= out"):
        toxloc.load_model(device="cpu", quantize=choice)


# Without the libraries


@pytest.mark.parametrize("choice", QUANTIZATIONS)
def test_a_library_that_is_not_installed_is_named(choice, monkeypatch):
    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    library = LIBRARIES[choice]
    with pytest.raises(ToxlocError, match=f"quantize='{choice}' needs the library {library}.*pip install '{library}>="):
        toxloc.load_model(quantize=choice)
    with pytest.raises(ToxlocError, match="Unknown quantization 'int3'; choose one of torchao-int8, "):
        toxloc.load_model(quantize="int3")


def test_a_quantized_folder_whose_library_is_not_installed(tmp_path, monkeypatch):
    random_hf("llama").save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    known = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": known}))
    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    with pytest.raises(ToxlocError, match="needs the library bitsandbytes, which is not installed; run: pip install"):
        toxloc.load_model(str(tmp_path))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "aqlm"}}))
    with pytest.raises(ToxlocError) as caught:
        toxloc.load_model(str(tmp_path), device="cpu")
    assert "cannot be loaded: ImportError" in str(caught.value) and "\n" not in str(caught.value)


class Halved(torch.nn.Module):
    """A linear map in the style of a library that toxloc does not know: its weight is in a buffer of integers."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.scale = linear.weight.abs().max().item() / 127
        self.register_buffer("packed", (linear.weight / self.scale).round().to(torch.int8).detach())

    def forward(self, x):
        return torch.nn.functional.linear(x, self.packed.to(x.dtype) * self.scale, self.bias)


def test_a_map_of_an_unknown_library_is_read_from_what_it_returns():
    linear = torch.nn.Linear(9, 4)
    unknown = Halved(linear)
    assert is_quantized(unknown) and not is_quantized(linear)
    torch.testing.assert_close(dequantized(unknown), unknown.packed * unknown.scale)
    assert [name for name, _ in plain_tensors(torch.nn.Sequential(unknown))] == ["0.bias", "0.packed"]


def test_a_model_with_maps_of_an_unknown_library(pairs):
    hf = random_hf("opt")
    for layer in hf.model.decoder.layers:
        layer.fc2 = Halved(layer.fc2)
    lm = LoadedModel.from_hf(hf, tokenizer())
    assert lm.is_quantized and not lm.at("0.attention").quantized
    before, original = logits(lm), lm.at(0).linear.packed.clone()
    with rank_one(lm, 0, 1, "1.attention").applied(lm):
        changed = logits(lm)
        assert (changed - before).abs().max() > 1e-4
        torch.testing.assert_close(logits(lm, hooked=True), changed)
    assert torch.equal(logits(lm), before) and torch.equal(lm.at(0).linear.packed, original)
    assert toxloc.localize(lm, pairs, draws=0).layer_scores("attribution").shape == (2,)
    skeleton = without_weights(hf)
    assert all(parameter.is_meta for parameter in skeleton.parameters())
    assert isinstance(skeleton.model.decoder.layers[0].fc2, torch.nn.Linear)


def test_infinite_vectors_are_refused():
    hf = random_hf("opt")
    hf.model.decoder.layers[0].fc2 = Halved(hf.model.decoder.layers[0].fc2)
    lm = LoadedModel.from_hf(hf, tokenizer())
    before = logits(lm)
    with pytest.raises(ToxlocError, match="infinite or NaN"):
        TRNE([RankOne(0, torch.full((48,), torch.inf), torch.ones(16))]).apply(lm)
    assert torch.equal(logits(lm), before)


def test_a_model_that_is_not_quantized_is_not_taken_for_one():
    for family in ("gpt2", "llama", "mixtral", "bitnet"):
        lm = random_model(family)
        assert not lm.is_quantized
        names = [name for name, _ in lm.hf.named_parameters()]
        assert [name for name, _ in plain_tensors(lm.hf)] == names
