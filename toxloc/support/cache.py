"""Cache folder for models that toxloc converts or downloads."""

import shutil
from pathlib import Path

import platformdirs

from ..errors import ToxlocError


def cache_folder() -> Path:
    """Return the path of toxloc's folder in the operating system's cache folder for the user. It may not exist yet."""
    return Path(platformdirs.user_cache_dir("toxloc"))


def check_room(folder: Path, size: int, what: str) -> None:
    """Check before any work is done that the disk of a folder has enough free space.

    Args:
        folder: a folder that will be created.
        size: bytes needed.
        what: subject of the error message, for example "Converting a.gguf".

    Raises:
        ToxlocError: less than `size` bytes are free.
    """
    free = shutil.disk_usage(next(parent for parent in folder.parents if parent.exists())).free
    if free < size:
        raise ToxlocError(
            f"{what} needs up to {size >> 20} MiB in {folder.parent}, where {free >> 20} MiB are free; "
            "free some space or set XDG_CACHE_HOME to a folder on another disk."
        )
