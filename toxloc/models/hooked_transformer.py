"""HookedTransformer, the class of transformer-lens up to 3.9: made of a Hugging Face model, sharing its weights."""

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch

from ..errors import ToxlocError

CLOSE = 1e-3  # how far logits may differ, relative to the largest
HAD = {"n_ctx": "n_positions"}  # what the class asks a configuration for, and what it is called since


def has_hooked_transformer() -> bool:
    """Whether the installed version of transformer-lens has the class."""
    try:
        from transformer_lens import HookedTransformer  # noqa: F401
    except ImportError:
        return False
    return True


def is_spread(hf: Any) -> bool:
    """Whether accelerate has dealt a model out to several devices."""
    return len(set((getattr(hf, "hf_device_map", None) or {}).values())) > 1


def hooked_transformer(hf: Any, tokenizer: Any, *, insist: bool = False) -> Any | None:
    """Make a HookedTransformer whose weights are views of a model's, unprocessed, or None where that cannot be.

    No layer norm is folded and nothing is centred, so that an edit of one is an edit of the other.

    Args:
        hf: the model.
        tokenizer: its tokenizer.
        insist: raise instead of returning None.

    Raises:
        ToxlocError: with `insist`, the installed version lacks the class, the class lacks the family, or it computes
            other logits.
    """
    if not has_hooked_transformer():
        if insist:
            raise ToxlocError(
                "The installed transformer-lens has no HookedTransformer any more; install "
                "'transformer-lens==3.9.*', or leave hooks= out for a TransformerBridge."
            )
        return None
    family = hf.config.model_type
    if is_spread(hf):
        if insist:
            raise ToxlocError("A model that is spread over several devices needs a bridge; leave hooks= out.")
        return None
    try:
        made = _converted(hf, tokenizer)
    except (NotImplementedError, AttributeError, KeyError, ValueError, RuntimeError) as error:
        if insist:
            raise ToxlocError(
                f"HookedTransformer cannot take this {family} model ({error}); use hooks='bridge'."
            ) from error
        return None
    far = _distance(hf, made)
    if far > CLOSE or not _shares_weights(hf, made):
        if insist:
            raise ToxlocError(
                f"HookedTransformer computes other logits for this {family} model (by {far:.1g} of the "
                "largest); use hooks='bridge'."
            )
        return None
    made.requires_grad_(False)
    return made


def _converted(hf: Any, tokenizer: Any) -> Any:
    """Convert configuration and weights with the class's own tables; `assign` keeps the views that they make."""
    from transformer_lens import HookedTransformer, loading_from_pretrained

    config = hf.config.to_dict()
    with tempfile.TemporaryDirectory(prefix="toxloc-") as folder:
        as_before = copy.deepcopy(hf.config)
        for older, newer in HAD.items():
            if newer in config:
                setattr(as_before, older, config[newer])
        as_before.to_json_file(Path(folder) / "config.json", use_diff=False)
        cfg = loading_from_pretrained.get_pretrained_model_config(
            folder, hf_cfg=config, fold_ln=False, device=str(hf.device), dtype=hf.dtype
        )
        state = loading_from_pretrained.get_pretrained_state_dict(folder, cfg, hf, dtype=hf.dtype)
    made = HookedTransformer(cfg, tokenizer, move_to_device=False, default_padding_side="right")
    made.load_state_dict(made.fill_missing_keys(state), assign=True, strict=False)
    return made.to(hf.device, print_details=False).eval()


@torch.inference_mode()
def _distance(hf: Any, made: Any) -> float:
    """Largest difference of logits, relative to the largest logit, on a few tokens with padding behind."""
    ids = torch.arange(24, device=hf.device).reshape(2, 12) % hf.config.vocab_size
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    expected = hf(input_ids=ids, attention_mask=mask).logits[mask.bool()].float()
    found = made(ids, attention_mask=mask)[mask.bool()].float()
    return float((found - expected).abs().max() / expected.abs().max())


def _shares_weights(hf: Any, made: Any) -> bool:
    own = {p.untyped_storage().data_ptr() for p in hf.parameters()}
    return all(
        weight.untyped_storage().data_ptr() in own
        for block in made.blocks
        for weight in (block.mlp.W_out, block.attn.W_O)
    )


def check_hooked(model: Any) -> None:
    """Raise ToxlocError if this is no HookedTransformer that toxloc can work on."""
    kind = type(model).__name__
    if not (
        hasattr(model, "cfg")
        and hasattr(model, "blocks")
        and hasattr(model, "ln_final")
        and not hasattr(model, "original_model")
    ):
        raise ToxlocError(
            f"A {kind} is not a model that toxloc takes; give what load_model returns, or a "
            "HookedTransformer of transformer-lens 3.9."
        )
    if model.tokenizer is None:
        raise ToxlocError(
            "This HookedTransformer has no tokenizer; make it with tokenizer=, or call its set_tokenizer."
        )
    if any(
        getattr(getattr(block, "mlp", None), "W_out", None) is None or block.mlp.W_out.ndim != 2
        for block in model.blocks
    ):
        raise ToxlocError(
            f"{model.cfg.model_name} has no dense MLP in every block (attention only, or a mixture of "
            "experts); toxloc works on models that do."
        )
