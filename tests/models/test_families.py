"""Which configurations are taken for those of decoder-only language models."""

import pytest
from transformers import AutoConfig

from benchmarks.families import (
    FAMILIES,
    MULTIMODAL,
    STRUCTURE_ONLY,
    multimodal_config,
    random_hf,
    small_config,
    tokenizer,
)
from toxloc import ToxlocError
from toxloc.models.families import CHECKED, check_decoder
from toxloc.models.loaded import LoadedModel


@pytest.mark.parametrize("family", ["t5", "bart", "whisper"])
def test_an_encoder_with_a_decoder_is_refused(family):
    with pytest.raises(ToxlocError, match=f"^org/name is a {family} model, an encoder with a decoder; .*decoder-only"):
        check_decoder(AutoConfig.for_model(family), "org/name")


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_an_encoder_is_refused(family):
    with pytest.raises(ToxlocError, match=f"^org/name is a {family} model, an encoder, which does not predict"):
        check_decoder(AutoConfig.for_model(family), "org/name")


@pytest.mark.parametrize("ending", ["ForMaskedLM", "ForSequenceClassification", "ForTokenClassification"])
def test_a_decoder_with_another_head_is_refused(ending):
    config = small_config("llama", architectures=[f"Llama{ending}"])
    with pytest.raises(ToxlocError, match=f"is a Llama{ending} model, an encoder"):
        check_decoder(config, "org/name")


def test_an_encoder_that_is_configured_as_a_decoder_is_taken():
    check_decoder(AutoConfig.for_model("bert", is_decoder=True), "org/name")


def test_the_configurations_of_all_families_are_taken():
    for family in (*FAMILIES, *STRUCTURE_ONLY):
        check_decoder(small_config(family), family)
    for family in MULTIMODAL:
        check_decoder(multimodal_config(family), family)


def test_an_encoder_in_memory_is_refused_before_anything_is_traced():
    hf = random_hf("bert")
    with pytest.raises(ToxlocError, match=r"^mine is a .*, an encoder"):
        LoadedModel.from_hf(hf, tokenizer(), "mine")


def test_a_family_is_loaded_without_checks_or_found_by_its_structure():
    assert not CHECKED & set(STRUCTURE_ONLY)
    assert not CHECKED & set(MULTIMODAL)  # the table names their text decoders
