"""`load_model`: from a name, a folder, a GGUF file or a hub id to a `LoadedModel`."""

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ..errors import ToxlocError
from ..support.progress import note
from ..support.quiet import quiet
from .architectures import architecture
from .hooked_transformer import is_spread
from .loaded import LoadedModel
from .settings import DTYPE_NAMES
from .sources import not_on_hub, resolve

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPE_NAMES}


def load_model(
    name: str = "toxloc-tiny",
    *,
    device: str | None = None,
    dtype: str = "float32",
    prepend_bos: bool | None = None,
    hooks: str | None = None,
) -> LoadedModel:
    """Load a language model for localization and intervention.

    Args:
        name: "toxloc-tiny" (comes with the package), a Hugging Face folder, a `.gguf` file (converted once into
            the user's cache) or a hub id.
        device: "cpu", "cuda", "cuda:1", "mps"; by default CUDA where there is one, else the CPU. "auto" deals the
            layers out to all CUDA devices, for models that one does not hold; statistics and edits of a layer then lie
            on its own device.
        dtype: "float32", "bfloat16" or "float16". Statistics and edits are computed in float32 whatever this is,
            but an edit written into 16-bit weights is rounded.
        prepend_bos: whether texts begin with the BOS token. By default yes if the tokenizer adds it by itself
            or if BOS is the token that also ends documents (GPT-2's custom: training texts began that way).
        hooks: class of `LoadedModel.hooked`, "transformer" for HookedTransformer, which transformer-lens 3.9 has and 4
            has not, or "bridge" for TransformerBridge. By default a HookedTransformer where the installed version has
            the class, and the class has the family and gives the same logits; else a bridge.

    Raises:
        ToxlocError: no such model, files missing, no network, unsupported family, no such device or dtype.

    Example:
        >>> lm = load_model("toxloc-tiny")
        >>> lm.n_layers, lm.d_mlp, lm.d_model
        (8, 1024, 256)
    """
    where = pick_device(device)
    if dtype not in DTYPES:
        raise ToxlocError(f"Unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}.")
    source = resolve(name)
    with quiet():
        try:
            config = AutoConfig.from_pretrained(source.location)
            architecture(config.model_type)
            tokenizer = AutoTokenizer.from_pretrained(source.location)
            hf = AutoModelForCausalLM.from_pretrained(
                source.location, dtype=DTYPES[dtype], config=config, device_map=_device_map(device)
            )
        except ToxlocError:
            raise
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            if source.kind == "hub":
                raise not_on_hub(name, error) from error
            raise ToxlocError(f"The model in {source.location} cannot be loaded: {error}") from error
    if tokenizer.chat_template is not None:
        note(f"{source.name} has a chat template. It is not used: texts are read, and prompts continued, as they are.")
    return LoadedModel.from_hf(hf if is_spread(hf) else hf.to(where), tokenizer, source.name, prepend_bos, hooks)


def _device_map(device: str | None) -> str | None:
    """Deal out only where there are several devices: on one there is nothing to gain from accelerate's hooks."""
    return "balanced" if device == "auto" and torch.cuda.device_count() > 1 else None


def pick_device(device: str | None) -> torch.device:
    """Turn a device's name into a device that is really there.

    Raises:
        ToxlocError: the name is not a device's, or the machine has no such device.
    """
    if device in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
    except RuntimeError:
        raise ToxlocError(f"{device!r} is not a device; use 'cpu', 'cuda', 'cuda:0', 'mps' or 'auto'.") from None
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        raise ToxlocError(
            f"Device {device!r} was asked for, but torch sees {torch.cuda.device_count()} CUDA devices; "
            "use --device cpu or install a CUDA build of torch."
        )
    if where.type == "mps" and not torch.backends.mps.is_available():
        raise ToxlocError("Device 'mps' was asked for, but this machine has none; use --device cpu.")
    return where
