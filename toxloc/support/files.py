"""Writing so that nothing is ever half-written: to a temporary neighbour first, then renamed into place."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import ToxlocError


def check_free(target: Path, overwrite: bool) -> None:
    """Refuse, before any work is done, to write where something lies already or where nothing can be written."""
    if target.exists() and not target.is_dir():
        raise ToxlocError(f"{target} is a file; give the name of a folder.")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise ToxlocError(f"{target} is not empty; choose another folder or allow overwriting (--overwrite, "
                          "in Python overwrite=True).")
    parent = target.resolve()
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK) or not parent.is_dir():
        raise ToxlocError(f"{parent} cannot be written to; choose another folder for {target.name}.")


@contextmanager
def new_folder(target: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside `target`; it takes the name `target` only if the block ends well.

    With `overwrite`, what stood at `target` is replaced at that moment and not earlier.

    Raises:
        ToxlocError: `target` is a file, is not empty (and `overwrite` is off), or cannot be written.
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
    """Yield a neighbour to write to; it takes the place of `path` if the block ends well, and is gone if not."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Write indented JSON, keys in the order given, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object, or say what was expected there."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ToxlocError(f"{path.parent} holds no {what}: {path.name} is missing.") from None
    except json.JSONDecodeError as error:
        raise ToxlocError(f"{path} is not valid JSON ({error}); was the {what} saved by toxloc?") from None
    if not isinstance(data, dict):
        raise ToxlocError(f"{path} does not hold a {what}.")
    return data
