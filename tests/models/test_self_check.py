"""The checks of a model of an unknown family: each refuses a model that is broken in its way."""

import pytest
import torch
from torch import nn
from transformers.models.helium.modeling_helium import HeliumMLP
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from benchmarks.families import STRUCTURE_ONLY
from tests.conftest import bits, random_hf, random_model, same_bits, tokenizer
from toxloc import ToxlocError
from toxloc.models import loaded
from toxloc.models.banks import Bank
from toxloc.models.loaded import LoadedModel
from toxloc.models.self_check import check_hooks
from toxloc.models.sites import Site


@pytest.mark.parametrize(
    "family", ["gpt2", "gemma2", "mixtral", "gpt_oss", "llama4_text", "jetmoe", "qwen3_5_text", "mamba"]
)
@pytest.mark.parametrize("hooks", ["bridge", "modules"])
def test_a_model_passes_and_is_left_unchanged(family, hooks):
    lm = LoadedModel.from_hf(random_hf(family), tokenizer(), hooks=hooks)
    before = bits(lm)
    assert check_hooks(lm) is None
    assert same_bits(before, lm)
    banks = {view.bank for site in lm.sites() if (view := lm.at(site)).bank is not None}
    assert not any(bank.watchers or bank.on_keys or bank.on_outputs for bank in banks)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_of_another_precision_passes(dtype):
    check_hooks(random_model("llama", dtype=dtype))


def test_a_mixture_most_of_whose_experts_are_idle_passes():
    check_hooks(random_model("mixtral", num_local_experts=24))


def test_differences_are_relative_to_the_size_of_the_logits():
    lm = random_model("llama")
    lm.hf.get_output_embeddings().weight.data *= 1e6
    check_hooks(lm)


def refused(lm, words):
    with pytest.raises(ToxlocError) as error:
        check_hooks(lm)
    assert f"{lm.name} is a {lm.model_type} model, a family that toxloc does not know" in str(error.value)
    assert f"and it failed a check: {words}. Choose a model of a family in docs/models.md." in str(error.value)


def patched(monkeypatch, module, change):
    """Let the forward pass of a class of modules return `change(module, x, y)`, with x its input and y its output."""
    forward = module.forward
    monkeypatch.setattr(module, "forward", lambda self, x, *args, **kwargs: change(self, x, forward(self, x)))


LOOKS_AHEAD = "its predictions change with tokens that come later, so it is not a decoder"


def test_a_model_that_looks_ahead(monkeypatch):
    patched(monkeypatch, LlamaMLP, lambda mlp, x, y: y + 0.1 * x.mean(1, keepdim=True))
    refused(random_model("llama"), LOOKS_AHEAD)


def test_a_model_that_attends_to_later_tokens(monkeypatch):
    attend = LlamaAttention.forward

    def forward(self, hidden_states, *args, attention_mask=None, **kwargs):
        everything = hidden_states.new_zeros(1, 1, hidden_states.shape[1], hidden_states.shape[1])
        return attend(self, hidden_states, *args, attention_mask=everything, **kwargs)

    lm = LoadedModel.from_hf(random_hf("llama"), tokenizer(), "model", hooks="modules")
    monkeypatch.setattr(LlamaAttention, "forward", forward)
    refused(lm, LOOKS_AHEAD)


def test_a_hooked_model_with_other_logits():
    lm = random_model("llama")
    lm.tree.module("model.norm").register_forward_hook(lambda module, args, out: 1.1 * out)
    refused(lm, "the hooked model computes other logits than the plain model")


def test_a_gradient_that_is_not_finite(monkeypatch):
    patched(monkeypatch, LlamaMLP, lambda mlp, x, y: y + (y - y.detach()).abs().sqrt())
    refused(random_model("llama"), "the gradient of its predictions at layer 0, attention is not finite")


def test_a_map_whose_output_takes_no_gradient(monkeypatch):
    patched(monkeypatch, LlamaMLP, lambda mlp, x, y: y.detach())
    refused(random_model("llama"), "the gradient of its predictions at layer 0 is not finite")


def test_a_hooked_model_with_separate_weights():
    lm = LoadedModel.from_hf(random_hf("llama"), tokenizer(), "model", hooks="modules")
    linear = lm.tree.module("model.layers.0.self_attn.o_proj")
    linear.weight = nn.Parameter(linear.weight.clone())
    refused(lm, "an edit of the weights of layer 0, attention is not seen by both module trees")


def test_a_map_that_is_used_twice(monkeypatch):
    def twice(mlp, x, y):
        return y + nn.functional.linear(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x), mlp.down_proj.weight)

    patched(monkeypatch, LlamaMLP, twice)
    refused(random_model("llama"), "scaling a unit of layer 0 with a hook differs from scaling its weights")


def test_a_map_whose_output_is_not_used(monkeypatch):
    patched(monkeypatch, LlamaMLP, lambda mlp, x, y: 0 * y)
    refused(random_model("llama"), "an edit of the weights of layer 0 does not change the logits")


def test_experts_that_run_without_their_hooks(monkeypatch):
    def forward(self, x):
        flat = x.flatten(0, 1)
        _, weights, index = self.gate(flat)
        return type(self.experts).forward(self.experts, flat, index, weights).view_as(x)

    lm = random_model("mixtral")
    monkeypatch.setattr(MixtralSparseMoeBlock, "forward", forward)
    refused(lm, "the gradient of its predictions at layer 0, expert 0 is not finite")


def test_experts_whose_computation_cannot_be_replaced(monkeypatch):
    for name in ("_install", "_uninstall"):
        monkeypatch.setattr(Bank, name, lambda bank: None)
    refused(random_model("mixtral"), "the experts of layer 0 cannot be watched")


@pytest.mark.parametrize("part", ["attention", "expert"])
def test_each_part_is_checked(part):
    lm = LoadedModel.from_hf(random_hf("mixtral"), tokenizer(), "model", hooks="modules")
    if part == "attention":
        module, name = lm.tree.module("model.layers.0.self_attn.o_proj"), "weight"
    else:
        module, name = lm.tree.module("model.layers.0.mlp.experts"), "down_proj"
    setattr(module, name, nn.Parameter(getattr(module, name).clone()))
    with pytest.raises(ToxlocError, match=f"an edit of the weights of layer 0, {part}.* is not seen"):
        check_hooks(lm)


# When a model is loaded


def test_a_model_of_a_known_family_is_not_checked_and_that_of_another_is(monkeypatch):
    checked = []
    monkeypatch.setattr(loaded, "check_hooks", checked.append)
    random_model("llama"), random_model("gemma3")
    assert checked == []
    lm = random_model("helium")
    assert checked == [lm]
    assert "helium" in STRUCTURE_ONLY


def test_a_broken_model_of_another_family_is_refused_when_it_is_loaded(monkeypatch):
    patched(monkeypatch, HeliumMLP, lambda mlp, x, y: y + 0.1 * x.mean(1, keepdim=True))
    with pytest.raises(ToxlocError, match=r"^random-helium is a helium model, .*tokens that come later"):
        random_model("helium")


def test_a_mixture_of_another_family_has_all_its_parts():
    lm = random_model("granitemoeshared")
    assert lm.parts == ("attention", "expert", "shared_expert")
    assert lm.at(Site(0, "shared_expert")).linear is not None
