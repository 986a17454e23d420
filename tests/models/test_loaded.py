import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

import toxloc
from tests.conftest import TEXTS, bits, random_hf, random_model, same_bits, tokenizer
from tests.interventions.methods.test_steering import n_hooks
from toxloc import TRNE, ContrastSet, Meow2X, ToxlocError
from toxloc.generation.generate import generate
from toxloc.models.hooked_tree import Point
from toxloc.models.loaded import LoadedModel
from toxloc.models.sites import Site


def test_two_trees_share_their_weights(any_family):
    lm = any_family
    for layer in range(lm.n_layers):
        weight = lm.down_projection(layer).weight
        assert lm.W_out(layer).data_ptr() == weight.data_ptr()
        assert lm.W_out(layer).shape == (lm.d_mlp, lm.d_model)
    seen = []
    lm.hooked.hook_dict["blocks.0.mlp.hook_post"].add_hook(lambda a, hook: seen.append(a))
    ids = torch.tensor([[0, 5, 9]])
    lm.hf(input_ids=ids)
    assert not seen
    lm.forward(ids, torch.ones_like(ids))
    assert seen


def test_both_trees_compute_the_same(any_family):
    ids = torch.tensor([[0, 5, 9, 77, 1000]])
    with torch.no_grad():
        a = any_family.forward(ids, torch.ones_like(ids))
        b = any_family.hf(input_ids=ids).logits
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("part", ["mlp", "attention"])
def test_hooks_see_and_replace_activations_for_the_block_only(tiny, part):
    """For the name of a hook point and for a module, also if the block raises an error."""
    ids = torch.tensor([[0, 5, 9]])

    def run():
        with torch.no_grad():
            return tiny.forward(ids, torch.ones_like(ids))

    view, before, seen = tiny.at(Site(1, part)), run(), []
    module = getattr(tiny.hooked.blocks[1], "mlp" if part == "mlp" else "attn")
    if tiny.is_bridge:
        module = module.out if part == "mlp" else module.o
    with pytest.raises(KeyError), tiny.hooks([(view.keys_hook, seen.append), (Point(module), torch.zeros_like)]):
        ablated = run()
        raise KeyError
    assert len(seen) == 1
    with tiny.hooks([(view.output_hook, torch.zeros_like)]):
        torch.testing.assert_close(run(), ablated)
    assert (ablated - before).abs().max() > 1e-3
    assert torch.equal(run(), before)
    assert len(seen) == 1


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "gemma2", "mixtral"])
def test_hooks_that_run_first_see_an_activation_before_the_changes_of_other_hooks(family, named):
    lm, ids = random_model(family), torch.tensor([[0, 5, 9]])
    place = lm.at(Site(1, "attention")).output_hook if named else Point(lm.hooked.blocks[1].attn)
    hooks, first, last = n_hooks(lm), [], []
    with (
        torch.no_grad(),
        lm.hooks([(place, lambda x: 2 * x)]),
        lm.hooks([(place, last.append)]),
        lm.hooks([(place, first.append)], first=True),
    ):
        lm.forward(ids, torch.ones_like(ids))
    assert len(first) == len(last) == 1
    assert torch.equal(last[0], 2 * first[0])
    assert n_hooks(lm) == hooks


def test_the_built_in_model(lm):
    assert (lm.n_layers, lm.d_mlp, lm.d_model, lm.context) == (8, 1024, 256, 256)
    assert lm.prepend_bos
    assert not any(p.requires_grad for p in [*lm.hf.parameters(), *lm.hooked.parameters()])
    assert "8 layers" in repr(lm)


def test_a_local_folder_in_every_precision(tmp_path):
    hf = random_hf("llama")
    hf.save_pretrained(tmp_path / "m")
    tokenizer().save_pretrained(tmp_path / "m")
    for dtype in ("float32", "bfloat16", "float16"):
        lm = toxloc.load_model(str(tmp_path / "m"), dtype=dtype, device="cpu")
        assert str(lm.dtype) == f"torch.{dtype}"
        assert lm.name == "m"
    with torch.no_grad():
        logits = toxloc.load_model(str(tmp_path / "m"), device="cpu").hf(torch.tensor([[0, 4]])).logits
        torch.testing.assert_close(logits, hf(torch.tensor([[0, 4]])).logits)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_the_hooks_that_distribute_a_model_change_nothing(family, monkeypatch):
    """The model has the hooks that accelerate uses on several devices, but every device is the CPU."""
    accelerate = pytest.importorskip("accelerate")
    plain, hf = random_model(family), random_hf(family)
    parts = {name: "cpu" for name, module in hf.named_modules() if name and not list(module.children())}
    accelerate.dispatch_model(hf, parts, main_device="cpu", force_hooks=True)
    monkeypatch.setattr("toxloc.models.hooked_tree.is_spread", lambda hf: True)
    spread = LoadedModel.from_hf(hf, tokenizer(), hooks="bridge")
    assert hasattr(spread.hooked.original_model, "_hf_hook")
    assert [spread.device_of(layer) for layer in range(2)] == [plain.device] * 2
    pairs = ContrastSet(TEXTS[:2], TEXTS[2:])
    result, expected = (toxloc.localize(lm, pairs, ("attribution", "auroc"), draws=5) for lm in (spread, plain))
    for score in expected.scores:
        torch.testing.assert_close(
            torch.tensor(result.neuron_scores(score)), torch.tensor(expected.neuron_scores(score)), rtol=1e-3, atol=1e-6
        )
    before = bits(spread)
    with TRNE.fit(spread, pairs, norm=0.05).applied(spread), Meow2X(layers=[1], scale=0.5).applied(spread):
        completions = generate(spread, ["The weather is"], samples=2, max_new_tokens=4)
    with TRNE.fit(plain, pairs, norm=0.05).applied(plain), Meow2X(layers=[1], scale=0.5).applied(plain):
        assert completions == generate(plain, ["The weather is"], samples=2, max_new_tokens=4)
    assert same_bits(before, spread)


def test_fingerprints_tell_models_apart():
    assert random_model(seed=0).fingerprint == random_model(seed=0).fingerprint
    assert random_model(seed=0).fingerprint != random_model(seed=1).fingerprint


def test_an_encoder_with_a_decoder_is_rejected():
    hf = T5ForConditionalGeneration(T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    with pytest.raises(ToxlocError, match="is a t5 model, an encoder with a decoder; toxloc takes decoder-only"):
        LoadedModel.from_hf(hf, tokenizer())


def test_an_unsupported_folder_is_rejected_before_its_weights_are_read(tmp_path):
    tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "model.safetensors").write_text("not weights")
    with pytest.raises(ToxlocError, match="is a bert model, an encoder, which does not predict the next token"):
        toxloc.load_model(str(tmp_path))


def test_damaged_weights(tmp_path):
    random_hf().config.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_text("not weights")
    with pytest.raises(ToxlocError, match=r"model\.safetensors is damaged"):
        toxloc.load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(dtype="float8"), "Unknown dtype 'float8'"),
        (dict(device="gpu"), "'gpu' is not a device"),
        (dict(device="cuda:99"), "'cuda:99' .*--device cpu"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ToxlocError, match=words):
        toxloc.load_model("toxloc-tiny", **arguments)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(pairs, neutral):
    lm = toxloc.load_model("toxloc-tiny", device="cuda")
    cpu = toxloc.localize(toxloc.load_model("toxloc-tiny", device="cpu"), pairs)
    for score in cpu.scores:
        difference = abs(toxloc.localize(lm, pairs).layer_scores(score) - cpu.layer_scores(score)).max()
        assert difference < 1e-2 * abs(cpu.layer_scores(score)).max()
    with toxloc.TRNE.fit(lm, pairs, neutral=neutral).applied(lm):
        assert toxloc.evaluate(lm, toxloc.load_prompts().limited(5), samples=1, fluency=False).completions


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_model_over_two_gpus(pairs, neutral):
    lm, on_one_gpu = (toxloc.load_model("toxloc-tiny", device=device) for device in ("auto", "cuda:0"))
    assert len({lm.device_of(layer) for layer in range(lm.n_layers)}) == 2
    statistics, expected = (toxloc.collect_contrast(model, pairs, curvature=True) for model in (lm, on_one_gpu))
    for layer in range(lm.n_layers):
        assert statistics.G(layer).device == lm.device_of(layer)
        torch.testing.assert_close(statistics.G(layer).cpu(), expected.G(layer).cpu(), rtol=1e-2, atol=1e-5)
    with toxloc.TRNE.fit(lm, pairs, neutral=neutral).applied(lm):
        assert toxloc.evaluate(lm, toxloc.load_prompts().limited(5), samples=1, fluency=False).completions
