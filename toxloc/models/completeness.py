"""Check that a model folder holds all weights of its configuration, so that no weight is left at a random value."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..errors import ToxlocError
from .quantized import plain_tensors

SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
FLOATS = ("F64", "F32", "F16", "BF16")
SLACK = 1.5  # a configuration with more than this many times the weights of the files is refused before memory is used


def check_folder(folder: Path, config: Any, skeleton: Callable[[], nn.Module]) -> None:
    """Compare the configuration of a folder with the headers of its safetensors files, before weights are read.

    Args:
        folder: the model folder.
        config: its configuration, as transformers reads it.
        skeleton: function that makes the model of the configuration on the meta device.

    Raises:
        ToxlocError: a size is not positive, a file is damaged, a tensor does not hold floating-point numbers, or the
            configuration describes a much larger model than the files hold.
    """
    sizes = {name: getattr(config.get_text_config(), name, None) for name in SIZES}
    for name, size in sizes.items():
        if isinstance(size, int) and size < 1:
            raise ToxlocError(f"{folder / 'config.json'}: {name} is {size}, which must be at least 1.")
    if getattr(config, "quantization_config", None) is not None or not any(folder.glob("*.safetensors")):
        return
    count, tensors = 0, 0
    for path in sorted(folder.glob("*.safetensors")):
        for name, dtype, shape in tensors_of(path):
            if dtype not in FLOATS:
                raise ToxlocError(
                    f"{path.name} in {folder} holds {name} as {dtype}; toxloc reads weights of {', '.join(FLOATS)}. "
                    "Save the model unquantized, or with its quantization_config in config.json."
                )
            count, tensors = count + torch.Size(shape).numel(), tensors + 1
    layers = sizes["num_hidden_layers"]
    if isinstance(layers, int) and layers > tensors:
        raise ToxlocError(
            f"{folder / 'config.json'} describes {layers:,} layers, but the weight files hold {tensors:,} tensors; "
            "restore the configuration or finish the download."
        )
    expected = sum(weight.numel() for weight in skeleton().parameters())
    if expected > SLACK * count:
        raise ToxlocError(
            f"{folder / 'config.json'} describes a model of {expected:,} weights, but the weight files hold {count:,}; "
            "restore the configuration or finish the download."
        )


def tensors_of(path: Path) -> list[tuple[str, str, list[int]]]:
    """Return the name, dtype and shape of each tensor of a safetensors file."""
    try:
        with safe_open(path, "pt") as weights:
            slices = [(name, weights.get_slice(name)) for name in weights.keys()]  # noqa: SIM118
            return [(name, piece.get_dtype(), piece.get_shape()) for name, piece in slices]
    except (SafetensorError, OSError) as error:
        raise ToxlocError(f"{path} is damaged or not a safetensors file ({error}); download it again.") from error


def check_loaded(report: Mapping[str, Any], source: str, *, allow_unexpected: bool = False) -> None:
    """Check that every weight came from the files.

    Args:
        report: what transformers reports of the loading (`output_loading_info=True`).
        source: the folder or hub id, for messages.
        allow_unexpected: whether the files may hold further weights, which are not loaded.

    Raises:
        ToxlocError: weights are missing, superfluous or of another shape.
    """
    missing, unexpected = report.get("missing_keys") or (), report.get("unexpected_keys") or ()
    mismatched = [key if isinstance(key, str) else key[0] for key in report.get("mismatched_keys") or ()]
    if missing:
        raise ToxlocError(
            f"The model in {source} lacks the weights {_some(missing)}, and random values would take their place; "
            "finish the download or restore the files."
        )
    if mismatched:
        raise ToxlocError(
            f"The model in {source} has weights of another shape than its configuration says: {_some(mismatched)}; "
            "restore config.json or the weights."
        )
    if unexpected and not allow_unexpected:
        raise ToxlocError(
            f"The model in {source} holds weights that its configuration does not describe: {_some(unexpected)}; "
            "restore config.json, or remove these weights."
        )


def check_finite(model: nn.Module, name: str) -> None:
    """Check that all weights in memory are finite; weights on the meta device are left out.

    Args:
        model: the module tree with the weights.
        name: name of the model, for the message.

    Raises:
        ToxlocError: a weight is infinite or NaN; the message names it.
    """
    with torch.no_grad():
        for parameter, weight in plain_tensors(model):
            if weight.is_meta or not weight.numel() or not weight.is_floating_point():
                continue
            low, high = weight.aminmax()
            if not (low.isfinite() and high.isfinite()):
                count = int((~weight.isfinite()).sum())
                raise ToxlocError(
                    f"The weight {parameter} of {name} holds {count:,} values that are infinite or NaN, so nothing "
                    "that the model computes is meaningful; use an undamaged copy."
                )


def _some(names: Iterable[str], limit: int = 3) -> str:
    """Return the first names, and how many more there are."""
    ordered = sorted(names)
    more = len(ordered) - limit
    return ", ".join(ordered[:limit]) + (f" and {more:,} more" if more > 0 else "")
