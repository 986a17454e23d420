"""Write files and folders completely or not at all: write to a temporary path in the same folder, then rename it."""

import glob
import json
import math
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ToxlocError
from .faults import fault_of
from .locks import locked

if TYPE_CHECKING:
    from torch import Tensor


def check_free(target: Path, overwrite: bool) -> None:
    """Check before any work is done that a folder can be written.

    Raises:
        ToxlocError: `target` is a file, is a folder with content (and `overwrite` is False), cannot be written, or is
            being written by another process.
    """
    try:
        place = _real(target)
        if place.exists() and not place.is_dir():
            raise ToxlocError(f"{target} is a file; give the name of a folder.")
        if place.is_dir() and any(place.iterdir()) and not overwrite:
            raise ToxlocError(
                f"{target} is not empty; choose another folder or allow overwriting (--overwrite, "
                "in Python overwrite=True)."
            )
        parent = place
        while not parent.exists():
            parent = parent.parent
        if not os.access(parent, os.W_OK) or not parent.is_dir():
            raise ToxlocError(f"{parent} cannot be written to; choose another folder for {target.name}.")
        if place.is_mount():
            raise ToxlocError(f"{target} is a mount point, which cannot be replaced; give a folder inside it.")
        is_locked = _lock_of(place).exists()  # by another process, or by a process that was killed
    except OSError as error:
        raise _unwritable(target, error) from error
    if is_locked:
        with locked(_lock_of(place), _busy(target)):
            pass


@contextmanager
def reserved(target: str | os.PathLike[str], *, wait: bool = False) -> Iterator[None]:
    """Let no other process write the folder `target` while the block runs, also if it does not exist yet.

    The lock is the file `.NAME.lock` next to the folder; it exists while the block runs. Folders that processes left
    half-written when they were killed are removed, and if such a process was replacing `target`, the old folder is
    restored. Missing parent folders are created, and removed if they are empty in the end.

    Args:
        target: the folder.
        wait: wait until another process has written the folder.

    Raises:
        ToxlocError: another process is writing the folder, or the parent folder cannot be written.

    Example:
        >>> with reserved("result"):                                # doctest: +SKIP
        ...     evaluation = toxloc.evaluate(lm, prompts)
        ...     evaluation.save("result")
    """
    place = _real(target)
    missing = [folder for folder in place.parents if not folder.exists()]
    try:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(target, error) from error
        with locked(_lock_of(place), _busy(target), wait=wait) as is_new:
            if is_new:  # nobody else has the lock, so every unfinished folder is left over
                try:
                    _remove_leftovers(place)
                except OSError as error:
                    raise _unwritable(target, error) from error
            yield
    finally:
        for folder in missing:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def _real(target: str | os.PathLike[str]) -> Path:
    return Path(os.path.realpath(target))  # if `target` is a link to a folder, the link stays


def _lock_of(place: Path) -> Path:
    return place.parent / f".{place.name}.lock"


def _busy(target: str | os.PathLike[str]) -> str:
    return f"Another process is writing {target}; wait for it, or choose another folder."


def _unwritable(target: str | os.PathLike[str], error: OSError) -> ToxlocError:
    return ToxlocError(f"{target} cannot be written ({error.strerror or error}); choose another folder.")


def _remove_leftovers(place: Path) -> None:
    unfinished = f".{glob.escape(place.name)}.????????"
    for old in place.parent.glob(f"{unfinished}.old"):
        if not place.exists():
            old.rename(place)
    for folder in (*place.parent.glob(f"{unfinished}.partial"), *place.parent.glob(f"{unfinished}.old")):
        if folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def new_folder(target: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder next to `target`; rename it to `target` if the block succeeds, and remove it otherwise.

    With `overwrite`, an existing `target` stays until the block has succeeded. All users can read the files. While the
    block runs, other processes cannot write `target` (see `reserved`).

    Raises:
        ToxlocError: `target` is a file, is a folder with content (and `overwrite` is False), cannot be written, or is
            being written by another process.

    Example:
        >>> with new_folder("result") as folder:                    # doctest: +SKIP
        ...     write_json(folder / "figures.json", {"rate": 0.1})
    """
    target = Path(target)
    check_free(target, overwrite)
    with reserved(target):
        check_free(target, overwrite)  # another process may have written it since the first check
        place = _real(target)
        try:
            partial = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".partial", dir=place.parent))
        except OSError as error:
            raise _unwritable(target, error) from error
        try:
            partial.chmod(0o755)
            yield partial
            for path in partial.rglob("*"):
                if path.is_file():
                    path.chmod(0o644)  # safetensors writes files that only their owner can read
            _put(partial, place, overwrite)
        except Exception as error:
            if reason := _reason(error, partial, place):
                raise ToxlocError(f"{target} cannot be written ({reason}).") from error
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _put(partial: Path, place: Path, overwrite: bool) -> None:
    """Rename a complete folder to its place; without `overwrite`, it replaces only an empty folder."""
    if not overwrite:
        if place.exists():
            place.rmdir()
        partial.rename(place)
        return
    old = partial.with_suffix(".old")
    try:
        if place.exists():
            place.rename(old)
        partial.rename(place)
    finally:
        if place.exists():
            shutil.rmtree(old, ignore_errors=True)
        elif old.exists():
            old.rename(place)


def _reason(error: Exception, *places: Path) -> str | None:
    """Return the reason why files at these places could not be written; None if the error has another cause."""
    if isinstance(error, ToxlocError):
        return None
    if fault := fault_of(error):
        return fault
    if isinstance(error, OSError) and error.filename is not None:
        path = Path(os.fsdecode(error.filename))
        if any(path == place or place in path.parents for place in places):
            return f"{error.strerror}; choose another folder"
    return None


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
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse(name: str) -> float:
    raise ValueError(f"it has the number {name}")


def _finite(number: str) -> float:
    value = float(number)
    return value if math.isfinite(value) else _refuse(number[:20])


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
