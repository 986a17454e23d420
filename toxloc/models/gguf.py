"""Convert GGUF files to Hugging Face model folders."""

import hashlib
from pathlib import Path
from typing import Any

from ..errors import ToxlocError
from ..support.cache import cache_folder, check_room
from ..support.files import new_folder, reserved
from ..support.quiet import quiet


def converted_folder(gguf: Path) -> Path:
    """Return a model folder made from a GGUF file; the file is converted on first use.

    The folder is in the user's cache, and its name contains the SHA-256 of the file (the first 16 digits), so a changed
    file is converted again and an unchanged file is not. transformers dequantises the weights to float32.

    Raises:
        ToxlocError: transformers cannot read the file, or the disk does not have enough free space.
    """
    with gguf.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    folder = cache_folder() / "gguf" / f"{gguf.stem}-{digest[:16]}"
    if (folder / "config.json").is_file():
        return folder
    check_room(folder, 10 * gguf.stat().st_size, f"Converting {gguf.name}")
    with reserved(folder, wait=True):
        if not (folder / "config.json").is_file():  # another process may have converted it meanwhile
            with new_folder(folder, overwrite=True) as partial:
                convert(gguf, partial)
    return folder


def convert(gguf: Path, folder: Path) -> None:
    """Write the model and the tokenizer of a GGUF file into a folder.

    Raises:
        ToxlocError: transformers cannot read the file.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from .completeness import check_loaded

    source: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(**source)
            model, report = AutoModelForCausalLM.from_pretrained(
                **source, dtype=torch.float32, output_loading_info=True
            )
    except (ValueError, KeyError, OSError, NotImplementedError) as error:
        raise ToxlocError(
            f"transformers cannot read {gguf.name} ({error}); convert it to a Hugging Face folder with another tool."
        ) from error
    check_loaded(report, gguf.name, allow_unexpected=True)
    # The weights are dequantised, but transformers refuses to save or edit a model that is marked as quantised.
    for attribute in ("hf_quantizer", "quantization_method", "is_quantized"):
        if hasattr(model, attribute):
            delattr(model, attribute)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with quiet():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
