"""Load a model whose weights stay on the disk, so that it may be larger than memory.

The weights are maps of safetensors files (`mapped`). The files must hold every weight as the model uses it: under the
same name, in the same shape and dtype. If they do not (another dtype; a mixture whose files hold each expert by itself;
pickled files), the model is converted once into the user's cache, some weights at a time.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from ..support.cache import cache_folder, check_room
from ..support.files import new_folder, reserved
from ..support.progress import step
from .completeness import check_loaded, tensors_of
from .mapped import DTYPES, map_weights, named_tensors
from .sources import Source

SHARD = "1GB"  # size of the files of a converted model, and the memory that the conversion takes
WEIGHTS = ("*.safetensors", "*.bin")


def load_offloaded(model_class: Any, source: Source, skeleton: Any, options: dict[str, Any]) -> tuple[Any, Any]:
    """Load a model whose weights stay in files.

    Args:
        model_class: class of transformers that loads the model.
        source: the source of the model, a folder.
        skeleton: the model on the meta device.
        options: arguments for `from_pretrained`.

    Returns:
        The model, and what transformers reports of the loading.

    Raises:
        ToxlocError: the disk does not have enough free space for a converted copy, or weights are missing.
    """
    folder = _mappable_folder(model_class, source, skeleton, options)
    model, report = model_class.from_pretrained(folder, **options)
    map_weights(model, safetensors_of(folder))
    model.name_or_path = source.location
    return model, report


def _mappable_folder(model_class: Any, source: Source, skeleton: Any, options: dict[str, Any]) -> Path:
    """Return a folder whose files hold every weight as the model uses it: that of the model, or one in the cache."""
    folder, dtype = Path(source.location), options["dtype"]
    if _is_mappable(folder, skeleton, dtype):
        return folder
    target = cache_folder() / "offload" / f"{folder.resolve().name}-{_key(folder, dtype)}"
    if (target / "config.json").is_file():
        return target
    size = sum(weight.numel() for weight in skeleton.parameters()) * dtype.itemsize
    check_room(target, 2 * size, f"Converting {source.name} to files that can stay on the disk")
    with reserved(target, wait=True), step(f"Converting {source.name}, once"):
        if not (target / "config.json").is_file():  # another process may have converted it meanwhile
            with new_folder(target, overwrite=True) as partial:
                _convert(model_class, folder, partial, skeleton, options)
    return target


def _is_mappable(folder: Path, skeleton: Any, dtype: torch.dtype) -> bool:
    """Whether the files of a folder hold every weight of a model under its name, in its shape and in a dtype."""
    held = {
        name: (DTYPES.get(kind), shape) for path in safetensors_of(folder) for name, kind, shape in tensors_of(path)
    }
    return all(
        entry == (dtype, list(weight.shape))
        for weight, (_, entry) in zip(skeleton.parameters(), named_tensors(skeleton, held), strict=True)
    )


def safetensors_of(folder: Path) -> list[Path]:
    """Return the safetensors files that transformers reads from a folder: those of the index, or the only one."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return sorted(folder.glob("model.safetensors"))
    return sorted({folder / file for file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})


def _key(folder: Path, dtype: torch.dtype) -> str:
    """Return a hash of what a converted folder depends on; it changes if a file of the folder is written."""
    files = [path for pattern in ("config.json", *WEIGHTS) for path in sorted(folder.glob(pattern))]
    state = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    content = json.dumps([str(folder.resolve()), state, str(dtype), transformers.__version__])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _convert(model_class: Any, folder: Path, target: Path, skeleton: nn.Module, options: dict[str, Any]) -> None:
    """Write the weights of a model folder into another one, as the model uses them, some at a time."""
    sizes = {place: sum(weight.numel() for weight in part.parameters()) for place, part in _places(skeleton)}
    smallest = min(sizes, key=lambda place: sizes[place])  # accelerate does not take a model that is all on the disk
    device_map = {place: "cpu" if place == smallest else "disk" for place in sizes}
    changed = target / "changed"
    model, report = model_class.from_pretrained(folder, device_map=device_map, offload_folder=changed, **options)
    check_loaded(report, str(folder))
    with warnings.catch_warnings(action="ignore"):  # that there must be memory for one file
        model.save_pretrained(target, max_shard_size=SHARD, save_original_format=False)
    shutil.rmtree(changed, ignore_errors=True)


def _places(model: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the parts of a model that can be loaded one after another: blocks, and modules beside them."""
    has_blocks = any(isinstance(module, nn.ModuleList) for module in model.modules())
    if path and (not has_blocks or any(True for _ in model.parameters(recurse=False))):
        if any(True for _ in model.parameters()):
            yield path, model
        return
    for name, child in model.named_children():
        yield from _places(child, f"{path}.{name}" if path else name)
