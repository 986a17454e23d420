"""Make a HookedTransformer, a class of transformer-lens up to 3.9, that shares the weights of a Hugging Face model."""

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch

from ..errors import ToxlocError

TOLERANCE = 1e-3  # largest difference of logits, relative to the largest logit
NEW_NAMES = {"n_ctx": "n_positions"}  # attributes of a configuration that the class reads, and their current names


def has_hooked_transformer() -> bool:
    """Whether the installed version of transformer-lens has the class."""
    try:
        from transformer_lens import HookedTransformer  # noqa: F401
    except ImportError:
        return False
    return True


def is_spread(hf: Any) -> bool:
    """Whether accelerate has distributed a model over several devices."""
    return len(set((getattr(hf, "hf_device_map", None) or {}).values())) > 1


def hooked_transformer(hf: Any, tokenizer: Any, *, insist: bool = False) -> Any | None:
    """Make a HookedTransformer whose weights are views of the weights of a Hugging Face model.

    The weights are not processed (no folded layer norms, no centring), so an edit of either model edits both.

    Args:
        hf: the Hugging Face model.
        tokenizer: its tokenizer.
        insist: raise an error if no such HookedTransformer can be made.

    Returns:
        The HookedTransformer, or None if it cannot be made.

    Raises:
        ToxlocError: with `insist`, the installed transformer-lens lacks the class, the model is spread over several
            devices, or the class does not support the family, computes other logits or does not share the weights.
    """
    if not has_hooked_transformer():
        if insist:
            raise ToxlocError(
                "The installed version of transformer-lens does not have HookedTransformer; install "
                "'transformer-lens==3.9.*', or leave hooks= out for a TransformerBridge."
            )
        return None
    family = hf.config.model_type
    if is_spread(hf):
        if insist:
            raise ToxlocError(
                "A model that is spread over several devices needs a TransformerBridge; leave hooks= out."
            )
        return None
    try:
        hooked = _converted(hf, tokenizer)
    except (NotImplementedError, AttributeError, KeyError, ValueError, RuntimeError) as error:
        if insist:
            raise ToxlocError(
                f"HookedTransformer does not support this {family} model ({error}); use hooks='bridge'."
            ) from error
        return None
    fault = None
    if (difference := _difference(hf, hooked)) > TOLERANCE:
        fault = (
            f"computes other logits for this {family} model (the difference is {difference:.1g} of the largest logit)"
        )
    elif not _shares_weights(hf, hooked):
        fault = f"copies weights of this {family} model, so that edits of one tree would not reach the other"
    if fault:
        if insist:
            raise ToxlocError(f"HookedTransformer {fault}; use hooks='bridge'.")
        return None
    hooked.requires_grad_(False)
    return hooked


def _converted(hf: Any, tokenizer: Any) -> Any:
    """Convert configuration and weights with the tables of transformer-lens; `assign` keeps the weights as views."""
    from transformer_lens import HookedTransformer, loading_from_pretrained

    config = hf.config.to_dict()
    with tempfile.TemporaryDirectory(prefix="toxloc-") as folder:
        old_config = copy.deepcopy(hf.config)
        for old, new in NEW_NAMES.items():
            if new in config:
                setattr(old_config, old, config[new])
        old_config.to_json_file(Path(folder) / "config.json", use_diff=False)
        cfg = loading_from_pretrained.get_pretrained_model_config(
            folder, hf_cfg=config, fold_ln=False, device=str(hf.device), dtype=hf.dtype
        )
        state = loading_from_pretrained.get_pretrained_state_dict(folder, cfg, hf, dtype=hf.dtype)
    hooked = HookedTransformer(cfg, tokenizer, move_to_device=False, default_padding_side="right")
    hooked.load_state_dict(hooked.fill_missing_keys(state), assign=True, strict=False)
    return hooked.to(hf.device, print_details=False).eval()


@torch.inference_mode()
def _difference(hf: Any, hooked: Any) -> float:
    """Return the largest difference of logits, relative to the largest logit, on a few right-padded tokens."""
    ids = torch.arange(24, device=hf.device).reshape(2, 12) % hf.config.vocab_size
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    expected = hf(input_ids=ids, attention_mask=mask).logits[mask.bool()].float()
    logits = hooked(ids, attention_mask=mask)[mask.bool()].float()
    return float((logits - expected).abs().max() / expected.abs().max())


def _shares_weights(hf: Any, hooked: Any) -> bool:
    """Whether every W_out and W_O of the HookedTransformer lies in the memory of the Hugging Face model."""
    storages = {p.untyped_storage().data_ptr() for p in hf.parameters()}
    return all(
        weight.untyped_storage().data_ptr() in storages
        for block in hooked.blocks
        for weight in (block.mlp.W_out, block.attn.W_O)
    )


def check_hooked(model: Any) -> None:
    """Check that a model is a HookedTransformer that toxloc supports.

    Raises:
        ToxlocError: the model is not a HookedTransformer, has no tokenizer, or has a block without a dense MLP.
    """
    kind = type(model).__name__
    if not (
        hasattr(model, "cfg")
        and hasattr(model, "blocks")
        and hasattr(model, "ln_final")
        and not hasattr(model, "original_model")
    ):
        raise ToxlocError(
            f"toxloc does not support a model of type {kind}; give the result of load_model, or a HookedTransformer of "
            "transformer-lens 3.9."
        )
    if model.tokenizer is None:
        raise ToxlocError(
            "This HookedTransformer has no tokenizer; create it with tokenizer=, or call its set_tokenizer."
        )
    if any(
        getattr(getattr(block, "mlp", None), "W_out", None) is None or block.mlp.W_out.ndim != 2
        for block in model.blocks
    ):
        raise ToxlocError(
            f"{model.cfg.model_name} has a block without a dense MLP (attention only, or a mixture of experts); use a "
            "model with a dense MLP in every block."
        )
