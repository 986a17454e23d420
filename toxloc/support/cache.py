"""The user's cache folder, for models that toxloc converts or downloads."""

import shutil
from pathlib import Path

import platformdirs

from ..errors import ToxlocError


def cache_folder() -> Path:
    """Return toxloc's folder in the user's cache, where the operating system keeps caches. It may not exist yet."""
    return Path(platformdirs.user_cache_dir("toxloc"))


def check_room(folder: Path, size: int, what: str) -> None:
    """Check, before any work is done, that a folder's disk has enough free space.

    Args:
        folder: a folder that will be made.
        size: bytes needed.
        what: subject of the error message, for example "Converting a.gguf".

    Raises:
        ToxlocError: less than `size` bytes are free.
    """
    free = shutil.disk_usage(next(parent for parent in folder.parents if parent.exists())).free
    if free < size:
        raise ToxlocError(
            f"{what} needs up to {size >> 20} MiB in {folder.parent}, where {free >> 20} MiB are free; "
            "make room or set XDG_CACHE_HOME to another disk."
        )
