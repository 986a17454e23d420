import subprocess
import sys

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

from tests.conftest import random_model
from toxloc.generation.attention import fast_attention, grouped_attention
from toxloc.generation.decoding import Decoding
from toxloc.generation.generate import generate, sample

PROMPTS = ["You are", "The weather in the north of the country was", "He", "I told her that the"]

rows, new, pos, d_head = 3, 2, 5, 4


@pytest.fixture
def tensors():
    """Query, key and value, and a causal mask in which the first row has two positions of padding."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(rows, heads, n, d_head, generator=generator) for heads, n in ((6, new), (2, pos), (2, pos))
    )
    seen = torch.ones(new, pos).tril(pos - new).bool().repeat(rows, 1, 1, 1)
    seen[0, :, :, :2] = False
    return query, key, value, torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)


@pytest.mark.parametrize("scaling", [None, 0.3])
def test_heads_that_share_keys_attend_as_if_each_had_its_own(tensors, scaling):
    query, key, value, mask = tensors
    out, _ = grouped_attention(torch.nn.Module(), query, key, value, mask, scaling=scaling)
    expected = scaled_dot_product_attention(query, key, value, mask, scale=scaling, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(out, expected)
    everything = scaled_dot_product_attention(query, key, value, enable_gqa=True)
    unmasked, _ = grouped_attention(torch.nn.Module(), query, key, value, None)
    torch.testing.assert_close(unmasked, everything.transpose(1, 2))


def test_the_softcap_equals_that_of_transformers(tensors):
    module = torch.nn.Module()
    module.num_key_value_groups = 3
    capped, _ = grouped_attention(module, *tensors, scaling=2.0, softcap=0.7)
    expected, _ = eager_attention_forward(module, *tensors, scaling=2.0, softcap=0.7)
    torch.testing.assert_close(capped, expected)


@pytest.mark.parametrize("broken", [False, True])
def test_the_attention_of_the_model_is_restored(lm, broken):
    before = lm.hf.config._attn_implementation
    if broken:
        with pytest.raises(ZeroDivisionError), lm.hf.register_forward_pre_hook(lambda *_: 1 / 0):
            generate(lm, PROMPTS)
    else:
        generate(lm, PROMPTS, max_new_tokens=1)
    assert lm.hf.config._attn_implementation == before


def registered():
    return set(ALL_ATTENTION_FUNCTIONS), set(ALL_MASK_ATTENTION_FUNCTIONS)


def test_the_block_uses_grouped_attention_and_leaves_no_trace(tiny):
    before, ids = registered(), torch.tensor([[0, 7, 9]])
    expected = tiny.hf(ids).logits
    with fast_attention(tiny):
        name = tiny.hf.config._attn_implementation
        assert ALL_ATTENTION_FUNCTIONS[name] is grouped_attention
        torch.testing.assert_close(tiny.hf(ids).logits, expected)
        with fast_attention(tiny):
            assert tiny.hf.config._attn_implementation == name
        assert tiny.hf.config._attn_implementation == name
        assert ALL_ATTENTION_FUNCTIONS[name] is grouped_attention
    assert tiny.hf.config._attn_implementation == "sdpa"
    assert registered() == before


def test_the_registry_is_restored_after_an_error(tiny):
    before = registered()
    with pytest.raises(ZeroDivisionError), fast_attention(tiny):
        raise ZeroDivisionError
    assert registered() == before
    assert tiny.hf.config._attn_implementation == "sdpa"


def test_models_that_do_not_use_the_fused_kernel_are_not_changed(tiny):
    tiny.hf.set_attn_implementation("eager")
    before = registered()
    with fast_attention(tiny):
        assert tiny.hf.config._attn_implementation == "eager"
        assert registered() == before
    assert tiny.hf.config._attn_implementation == "eager"


@pytest.mark.parametrize("same_model", [True, False])
def test_two_samplings_at_the_same_time_can_end_in_any_order(same_model):
    """The block that is entered first is left first, while the second block is still in use."""
    first_model = random_model()
    second_model = first_model if same_model else random_model()
    before, alone = registered(), generate(second_model, ["a b"], samples=6, max_new_tokens=4)
    first = sample(first_model, ["a b"], Decoding(samples=6, max_new_tokens=4), batch_size=2)
    second = sample(second_model, ["a b"], Decoding(samples=6, max_new_tokens=4), batch_size=2)
    next(first)
    completions = [next(second)]
    assert registered() != before
    list(first)
    completions += second
    assert [c.text for c in sorted(completions, key=lambda c: c.sample)] == alone[0]
    assert registered() == before
    assert {model.hf.config._attn_implementation for model in (first_model, second_model)} == {"sdpa"}


def test_importing_registers_nothing():
    program = (
        "from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as known; before = set(known); "
        "import toxloc.generation.generate; print(sorted(set(known) - before))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
