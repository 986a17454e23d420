"""Write files and folders completely or not at all: write to a temporary path in the same folder, then rename it."""

import json
import math
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ToxlocError

if TYPE_CHECKING:
    from torch import Tensor


def check_free(target: Path, overwrite: bool) -> None:
    """Check before any work is done that a folder can be written.

    Raises:
        ToxlocError: `target` is a file, is a folder with content (and `overwrite` is False), or cannot be written.
    """
    if target.exists() and not target.is_dir():
        raise ToxlocError(f"{target} is a file; give the name of a folder.")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise ToxlocError(
            f"{target} is not empty; choose another folder or allow overwriting (--overwrite, "
            "in Python overwrite=True)."
        )
    parent = target.resolve()
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK) or not parent.is_dir():
        raise ToxlocError(f"{parent} cannot be written to; choose another folder for {target.name}.")


@contextmanager
def new_folder(target: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder next to `target`; rename it to `target` if the block succeeds, and remove it otherwise.

    With `overwrite`, an existing `target` stays until the block has succeeded. All users can read the files.

    Raises:
        ToxlocError: `target` is a file, is a folder with content (and `overwrite` is False), or cannot be written.

    Example:
        >>> with new_folder("result") as folder:                    # doctest: +SKIP
        ...     write_json(folder / "figures.json", {"rate": 0.1})
    """
    target = Path(target)
    check_free(target, overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    except OSError as error:
        raise ToxlocError(f"{target} cannot be written ({error.strerror}); choose another folder.") from error
    partial.chmod(0o755)
    old = partial.with_suffix(".old")
    try:
        yield partial
        for path in partial.rglob("*"):
            if path.is_file():
                path.chmod(0o644)  # safetensors writes files that only their owner can read
        if target.exists():
            target.rename(old)
        partial.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; rename it to `path` if the block succeeds, and remove it otherwise.

    Missing parent folders are created.

    Raises:
        ToxlocError: `path` cannot be written.

    Example:
        >>> with replacing(Path("figure.png")) as partial:          # doctest: +SKIP
        ...     partial.write_bytes(picture)
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        if error.filename in (None, *map(str, (partial, path, *path.parents))):
            raise ToxlocError(f"{path} cannot be written ({error.strerror or error}); choose another place.") from error
        raise  # the error concerns another file that the block uses


def write_json(path: Path, data: Any) -> None:
    """Write a value as indented JSON, with keys in their given order; replace an existing file.

    Raises:
        ToxlocError: the file cannot be written.
        TypeError: JSON has no equivalent of a type in `data`.
        ValueError: a number is infinite or nan.
    """
    with replacing(path) as partial:
        partial.write_text(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.
        what: name of the content in error messages, for example "localization".

    Raises:
        ToxlocError: the file does not exist, cannot be read, or does not contain a JSON object; NaN and Infinity, which
            JSON does not have, are refused too.
    """
    try:
        data = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ToxlocError(f"{path.parent} holds no {what}: {path.name} is missing.") from None
    except OSError as error:
        raise ToxlocError(
            f"{path} cannot be read ({error.strerror or error}); was the {what} saved by toxloc?"
        ) from None
    except ValueError as error:
        raise ToxlocError(f"{path} is not valid JSON ({error}); was the {what} saved by toxloc?") from None
    if not isinstance(data, dict):
        raise ToxlocError(f"{path} does not hold a {what}.")
    return data


def parse_json(text: str) -> Any:
    """Parse JSON that somebody else may have written.

    Raises:
        ValueError: it is not valid JSON, is nested too deeply, or has a number that is infinite, NaN or too long.
    """

    def refuse(name: str) -> float:
        raise ValueError(f"it has the number {name}")

    def finite(number: str) -> float:
        value = float(number)
        return value if math.isfinite(value) else refuse(number[:20])

    try:
        return json.loads(text, parse_constant=refuse, parse_float=finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_tensors(path: Path, what: str) -> "dict[str, Tensor]":
    """Read a safetensors file of finite floating-point or integer tensors.

    Args:
        path: the file.
        what: name of the content in error messages, for example "intervention".

    Raises:
        ToxlocError: the file does not exist, is damaged, or holds numbers that are infinite or NaN.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise ToxlocError(f"The {what} in {path.parent} is damaged or incomplete: {path.name}: {error}") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ToxlocError(
                f"The {what} in {path.parent} is damaged: {name} in {path.name} holds numbers that are infinite or NaN."
            )
    return tensors
