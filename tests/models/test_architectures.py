import pytest
from transformers import MixtralConfig, MixtralForCausalLM

from benchmarks import tables
from benchmarks.coverage import check
from benchmarks.families import SIZES
from tests.conftest import random_hf, tokenizer
from toxloc import LoadedModel, ToxlocError
from toxloc.models.architectures import ARCHITECTURES


def test_every_family_has_a_small_model_here():
    assert set(SIZES) == set(ARCHITECTURES)


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_everything_holds_on_every_family(family):
    found = check(family)
    assert found.logits < 1e-5
    assert found.attribution < 1e-2
    assert found.meow2x < 1e-5
    assert found.trne < 1e-5
    assert found.export == 0
    assert found.revert == 0


def test_the_table_in_the_docs_is_of_these_families():
    assert set(tables.saved("coverage")["families"]) == set(ARCHITECTURES)


def test_a_mixture_of_experts_is_refused():
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
    with pytest.raises(
        ToxlocError,
        match="'mixtral' are not supported; toxloc works on decoder-only language models with one dense MLP per block",
    ):
        LoadedModel.from_hf(hf, tokenizer())


def test_a_changed_layout_under_a_known_name_is_refused():
    hf = random_hf("llama")
    del hf.model.layers[1].mlp.down_proj
    with pytest.raises(ToxlocError, match=r"no dense MLP at model\.layers\.\*\.mlp\.down_proj; mixtures of experts"):
        LoadedModel.from_hf(hf, tokenizer())
