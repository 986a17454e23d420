"""Load a model from a name, a folder, a GGUF file or the hub: `load_model`."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from ..errors import ToxlocError
from ..support.quiet import quiet
from .completeness import check_folder, check_loaded
from .families import check_decoder
from .hooked_transformer import is_spread
from .loaded import LoadedModel
from .offload import load_offloaded
from .quantized import check_installed, is_quantized, quantization_config
from .settings import DTYPE_NAMES, QUANTIZATIONS
from .sources import check_no_code, downloaded, not_on_hub, resolve

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPE_NAMES}


def load_model(
    name: str = "toxloc-tiny",
    *,
    device: str | None = None,
    dtype: str = "float32",
    prepend_bos: bool | None = None,
    hooks: str | None = None,
    offload: bool = False,
    quantize: str | None = None,
    trust_remote_code: bool = False,
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
            4), "bridge" for TransformerBridge, or "modules" for a `ModuleTree`, which has no named hook points. By
            default a HookedTransformer if the installed version has the class, and the class supports the family and
            computes the same logits; otherwise a TransformerBridge; otherwise, and with `offload`, a `ModuleTree`.
        offload: keep the weights on the disk, for a model that is larger than memory. The model runs on the CPU, and
            the operating system reads the weights from the files when they are used. An edit takes memory for the
            weights that it changes. If the files hold the weights in another dtype or layout, they are converted once
            into the user's cache.
        quantize: quantize the weights of the linear maps while loading: "torchao-int8", "bnb-8bit" or "bnb-4bit". A
            quantized model can be localized, changed with hooks, and edited by TRNE, whose change is added to the
            outputs of the maps; other edits of the weights are refused.
        trust_remote_code: run the code that the model brings (`auto_map` in config.json). Allow it only for code that
            you have read and trust: it can do whatever you can do.

    Raises:
        ToxlocError: the model does not exist, lacks files, cannot be downloaded, has an unsupported family, or brings
            its own code without `trust_remote_code`; or the device, the dtype, the class of hooks or the library that
            quantizes is not available; or the options contradict each other.

    Example:
        >>> lm = load_model("toxloc-tiny")
        >>> lm.n_layers, lm.d_mlp, lm.d_model
        (8, 1024, 256)
    """
    _check_options(dtype, device, offload, quantize)
    torch_device = pick_device("cpu" if offload else device)
    source, remote = resolve(name), {"trust_remote_code": trust_remote_code}
    try:
        with quiet():
            if offload:
                source = downloaded(source)
            config = AutoConfig.from_pretrained(source.location, **remote)
            check_decoder(config, name)
            quantization = _quantization(config, name, quantize, DTYPES[dtype], offload)
            model_class = _class_of(config)
            skeleton = partial(_skeleton, model_class, config, remote)
            if source.kind != "hub":
                check_folder(Path(source.location), config, skeleton)
            tokenizer = AutoTokenizer.from_pretrained(source.location, **remote)
            options = {
                "config": config,
                "dtype": DTYPES[dtype],
                "ignore_mismatched_sizes": True,  # check_loaded refuses them, by name
                "output_loading_info": True,
                **remote,
            }
            if offload:
                hf, report = load_offloaded(model_class, source, skeleton(), options)
            else:
                device_map = _device_map(device, torch_device, quantization is not None)
                if quantization:
                    options["quantization_config"] = quantization
                hf, report = model_class.from_pretrained(source.location, device_map=device_map, **options)
    except ToxlocError:
        raise
    except Exception as error:  # transformers raises errors of many types on damaged files
        check_no_code(name, error, can_allow=not trust_remote_code)
        if source.kind == "hub" and isinstance(error, OSError | ValueError | KeyError):
            raise not_on_hub(name, error) from error
        raise ToxlocError(f"The model in {source.location} cannot be loaded: {_in_one_line(error)}") from error
    check_loaded(report, source.location)
    is_ready = is_spread(hf) or any(map(is_quantized, hf.modules()))
    if quantize and not is_ready:
        raise ToxlocError(
            f"quantize={quantize!r} quantizes no linear map of this {config.model_type} model; leave quantize= out."
        )
    if tokenizer.vocab_size > (rows := hf.get_input_embeddings().weight.shape[0]):
        raise ToxlocError(
            f"The tokenizer in {source.location} has {tokenizer.vocab_size:,} tokens, but the model embeds only "
            f"{rows:,}; restore the tokenizer that belongs to the model."
        )
    return LoadedModel.from_hf(hf if is_ready else hf.to(torch_device), tokenizer, source.name, prepend_bos, hooks)


def _check_options(dtype: str, device: str | None, offload: bool, quantize: str | None) -> None:
    """Raise ToxlocError if an option is unknown, or if options contradict each other."""
    if dtype not in DTYPES:
        raise ToxlocError(f"Unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}.")
    if quantize is not None and quantize not in QUANTIZATIONS:
        raise ToxlocError(f"Unknown quantization {quantize!r}; choose one of {', '.join(QUANTIZATIONS)}.")
    if offload and device not in (None, "cpu"):
        raise ToxlocError(f"A model with offload=True runs on the CPU, not on {device!r}; leave one of the two out.")
    if offload and quantize is not None:
        raise ToxlocError("A model cannot be both offloaded and quantized; leave offload= or quantize= out.")


def _quantization(config: Any, name: str, quantize: str | None, dtype: torch.dtype, offload: bool) -> Any:
    """Return how to quantize a model while loading it; {} if its files are quantized, None if nothing is quantized.

    Raises:
        ToxlocError: the files are quantized and `quantize` or `offload` is given too, or a library is not installed.
    """
    known = getattr(config, "quantization_config", None)
    if known is None:
        return None if quantize is None else quantization_config(quantize, dtype)
    known = known if isinstance(known, dict) else known.to_dict()
    library = str(getattr(known.get("quant_method"), "value", known.get("quant_method") or "bitsandbytes"))
    if quantize is not None or offload:
        option = "offload=True" if offload else f"quantize={quantize!r}"
        raise ToxlocError(f"The weights of {name} are quantized already, with {library}; leave {option} out.")
    check_installed(library, name)
    return {}


def _class_of(config: Any) -> Any:
    """Return the class that loads every weight of a model: that of multimodal models, or that of language models."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    architecture = next(iter(getattr(config, "architectures", None) or ()), "")
    multimodal = config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    if multimodal and architecture.endswith("ForConditionalGeneration"):
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def _skeleton(model_class: Any, config: Any, remote: dict[str, Any]) -> nn.Module:
    """Make the model of a configuration on the meta device, without memory for its weights."""
    with torch.device("meta"):
        model: nn.Module = model_class.from_config(config, **remote)
    return model


def _in_one_line(error: Exception, limit: int = 300) -> str:
    """Return the type and the message of an error, without line breaks and shortened."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:limit]}{'…' if len(message) > limit else ''}"


def _device_map(device: str | None, torch_device: torch.device, quantized: bool) -> Any:
    """Return where transformers places a model: nowhere in particular, unless it is spread or quantized on a GPU.

    On a single device, accelerate's hooks have no benefit. A quantized model cannot be moved after it was loaded.
    """
    if device == "auto" and torch.cuda.device_count() > 1:
        return "balanced"
    return {"": torch_device} if quantized and torch_device.type != "cpu" else None


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
