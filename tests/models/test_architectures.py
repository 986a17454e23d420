import pytest
from transformers import MixtralConfig, MixtralForCausalLM

from benchmarks import tables
from benchmarks.coverage import check
from benchmarks.families import SIZES
from tests.conftest import random_hf, tokenizer
from toxloc import LoadedModel, ToxlocError
from toxloc.models.architectures import ARCHITECTURES


def test_every_family_has_a_small_model():
    assert set(SIZES) == set(ARCHITECTURES)


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_every_feature_works_on_every_family(family):
    differences = check(family)
    assert differences.logits < 1e-5
    assert differences.attribution < 1e-2
    assert differences.meow2x < 1e-5
    assert differences.trne < 1e-5
    assert differences.export == 0
    assert differences.revert == 0


def test_the_table_in_the_docs_has_these_families():
    assert set(tables.saved("coverage")["families"]) == set(ARCHITECTURES)


def test_a_mixture_of_experts_is_rejected():
    hf = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_local_experts=2,
        )
    )
    with pytest.raises(ToxlocError, match=r"'mixtral' are not supported; .*one dense MLP per block"):
        LoadedModel.from_hf(hf, tokenizer())


def test_a_changed_layout_of_a_supported_type_is_rejected():
    hf = random_hf("llama")
    del hf.model.layers[1].mlp.down_proj
    with pytest.raises(ToxlocError, match=r"no module model\.layers\.\*\.mlp\.down_proj"):
        LoadedModel.from_hf(hf, tokenizer())
