"""Load a model from a name, a folder, a GGUF file or the hub: `load_model`."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ..errors import ToxlocError
from ..support.progress import note
from ..support.quiet import quiet
from .architectures import architecture
from .completeness import check_folder, check_loaded
from .hooked_transformer import is_spread
from .loaded import LoadedModel
from .settings import DTYPE_NAMES
from .sources import check_no_code, not_on_hub, resolve

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
        name: "toxloc-tiny" (comes with the package), the name of a model that `toxloc models fetch` has downloaded, a
            Hugging Face folder, a `.gguf` file (converted once into the user's cache) or a hub id.
        device: "cpu", "cuda", "cuda:1", "mps" or "auto"; by default CUDA if it is available, else the CPU. "auto"
            distributes the layers over all CUDA devices, for models that do not fit on a single device; the statistics
            and edits of a layer are then on the device of the layer.
        dtype: "float32", "bfloat16" or "float16". Statistics and edits are computed in float32 for every dtype, but an
            edit that is written into 16-bit weights is rounded.
        prepend_bos: whether texts begin with the BOS token. By default they do if the tokenizer adds BOS, or if BOS is
            also the token that ends documents (as for GPT-2, whose training texts begin with it).
        hooks: class of `LoadedModel.hooked`: "transformer" for HookedTransformer (in transformer-lens 3.9, but not in
            4), or "bridge" for TransformerBridge. By default a HookedTransformer if the installed version has the
            class, and the class supports the family and computes the same logits; otherwise a TransformerBridge.

    Raises:
        ToxlocError: the model does not exist, lacks files, cannot be downloaded or has an unsupported family; or the
            device, the dtype or the class of hooks is not available.

    Example:
        >>> lm = load_model("toxloc-tiny")
        >>> lm.n_layers, lm.d_mlp, lm.d_model
        (8, 1024, 256)
    """
    torch_device = pick_device(device)
    if dtype not in DTYPES:
        raise ToxlocError(f"Unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}.")
    source = resolve(name)
    with quiet():
        try:
            config = AutoConfig.from_pretrained(source.location, trust_remote_code=False)
            architecture(config.model_type)
            if source.kind != "hub":
                check_folder(Path(source.location), config)
            tokenizer = AutoTokenizer.from_pretrained(source.location, trust_remote_code=False)
            hf, report = AutoModelForCausalLM.from_pretrained(
                source.location,
                dtype=DTYPES[dtype],
                config=config,
                trust_remote_code=False,
                device_map=_device_map(device),
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # check_loaded refuses them, by name
            )
        except ToxlocError:
            raise
        except Exception as error:  # transformers raises errors of many types on damaged files
            check_no_code(name, error)
            if source.kind == "hub" and isinstance(error, OSError | ValueError | KeyError):
                raise not_on_hub(name, error) from error
            raise ToxlocError(f"The model in {source.location} cannot be loaded: {_in_one_line(error)}") from error
    check_loaded(report, source.location)
    if tokenizer.vocab_size > (rows := hf.get_input_embeddings().weight.shape[0]):
        raise ToxlocError(
            f"The tokenizer in {source.location} has {tokenizer.vocab_size:,} tokens, but the model embeds only "
            f"{rows:,}; restore the tokenizer that belongs to the model."
        )
    if tokenizer.chat_template is not None:
        note(f"{source.name} has a chat template. toxloc does not use it: texts and prompts are read as plain text.")
    return LoadedModel.from_hf(hf if is_spread(hf) else hf.to(torch_device), tokenizer, source.name, prepend_bos, hooks)


def _in_one_line(error: Exception, limit: int = 300) -> str:
    """Return the type and the message of an error, without line breaks and shortened."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:limit]}{'…' if len(message) > limit else ''}"


def _device_map(device: str | None) -> str | None:
    """Distribute only over several devices: on a single device, accelerate's hooks have no benefit."""
    return "balanced" if device == "auto" and torch.cuda.device_count() > 1 else None


def pick_device(device: str | None) -> torch.device:
    """Return the torch device of a name; None and "auto" mean CUDA if it is available, else the CPU.

    Raises:
        ToxlocError: the name is not the name of a device, or the machine does not have the device.
    """
    if device in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch_device = torch.device(device)
    except RuntimeError:
        raise ToxlocError(f"{device!r} is not a device; use 'cpu', 'cuda', 'cuda:0', 'mps' or 'auto'.") from None
    if torch_device.type == "cuda" and (torch_device.index or 0) >= torch.cuda.device_count():
        raise ToxlocError(
            f"Device {device!r} is not available; torch sees {torch.cuda.device_count()} CUDA devices; "
            "use --device cpu or install a CUDA build of torch."
        )
    if torch_device.type == "mps" and not torch.backends.mps.is_available():
        raise ToxlocError("Device 'mps' is not available on this machine; use --device cpu.")
    return torch_device
