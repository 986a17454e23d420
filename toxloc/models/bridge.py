"""A TransformerBridge that shares its weights with a Hugging Face model."""

import copy
from typing import Any

from .hooked_transformer import is_spread


def bridge(hf: Any, tokenizer: Any, name: str) -> Any:
    """Make a TransformerBridge over a copy of the model that shares every weight with it."""
    from transformer_lens.model_bridge import TransformerBridge

    shared = {id(t): t for t in [*hf.parameters(), *hf.buffers()]}
    twin = copy.deepcopy(hf, shared)
    device = {} if is_spread(hf) else {"device": hf.device}
    hooked = TransformerBridge.boot_transformers(name, hf_model=twin, tokenizer=tokenizer, **device)
    # The bridge splits the joint q, k, v matrix of some families into new parameters, which are not frozen yet.
    hooked.requires_grad_(False)
    return hooked


def starts_with_bos(tokenizer: Any) -> bool:
    """Whether texts begin with BOS: the tokenizer adds it, or BOS is also the token that ends documents."""
    bos = tokenizer.bos_token_id
    if bos is None:
        return False
    return bool(tokenizer("a")["input_ids"][:1] == [bos] or bos == tokenizer.eos_token_id)
