"""Faults of the machine, such as a full disk, in words."""

import errno
import os
import re

ADVICE = {
    errno.ENOSPC: "free some space, or choose another disk",
    errno.EDQUOT: "free some space, or choose another disk",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or choose another disk",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close other programs",
    errno.EROFS: "choose another disk",
    errno.EIO: "check the disk",
    errno.ENOMEM: "close other programs, or give a smaller model or fewer texts",
}
# torch has no separate exception for memory on the CPU, and libraries in Rust put the number of the error in the text.
NO_MEMORY = re.compile(r"can't allocate memory|out of memory", re.IGNORECASE)
NUMBER = re.compile(r"os error (\d+)")


def fault_of(error: BaseException) -> str | None:
    """Return which fault of the machine an exception reports and what to do about it, or None if it reports none.

    Example:
        >>> fault_of(OSError(28, "No space left on device"))
        'No space left on device; free some space, or choose another disk'
    """
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and NO_MEMORY.search(str(error))):
        number = errno.ENOMEM
    elif number is None and isinstance(error, Exception) and (match := NUMBER.search(str(error))):
        number = int(match[1])
    return f"{os.strerror(number)}; {ADVICE[number]}" if number in ADVICE else None
