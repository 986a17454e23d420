"""GGUF files to normal model folders, once, in the user's cache."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import platformdirs

from ..errors import ToxlocError
from ..support.files import new_folder
from ..support.progress import quiet


def cache() -> Path:
    """Return the user's cache folder for toxloc, as the operating system has it."""
    return Path(platformdirs.user_cache_dir("toxloc"))


def check_room(folder: Path, size: int, what: str) -> None:
    """Refuse, before any work is done, what would not fit on the disk of a folder that is to be made."""
    free = shutil.disk_usage(next(parent for parent in folder.parents if parent.exists())).free
    if free < size:
        raise ToxlocError(f"{what} needs up to {size >> 20} MiB in {folder.parent}, where {free >> 20} MiB are free; "
                          "make room or set XDG_CACHE_HOME to another disk.")


def converted(gguf: Path) -> Path:
    """Return a normal model folder made from a GGUF file, converting it on first use.

    The folder lies in the user's cache under the SHA-256 of the file, so a changed file is converted anew and
    the same file never twice. Weights are dequantised to float32, as transformers reads them.

    Raises:
        ToxlocError: transformers cannot read the file.
    """
    digest = hashlib.sha256()
    with gguf.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    folder = cache() / "gguf" / f"{gguf.stem}-{digest.hexdigest()[:16]}"
    if (folder / "config.json").is_file():
        return folder
    check_room(folder, 10 * gguf.stat().st_size, f"Converting {gguf.name}")
    with new_folder(folder, overwrite=True) as partial:
        convert(gguf, partial)
    return folder


def convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF file's model and tokenizer into a folder.

    Raises:
        ToxlocError: transformers cannot read the file.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(**where)
            model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    except (ValueError, KeyError, OSError, NotImplementedError) as error:
        raise ToxlocError(
            f"transformers cannot read {gguf.name} ({error}); convert it to a Hugging Face folder by other means."
        ) from error
    # What is saved is a plain model: as long as these say "quantized", it could neither be saved nor edited.
    for attribute in ("hf_quantizer", "quantization_method", "is_quantized"):
        if hasattr(model, attribute):
            delattr(model, attribute)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with quiet():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
