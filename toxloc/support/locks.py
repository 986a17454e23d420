"""Let a single process at a time write to a file or folder."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import ToxlocError

NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # errors of file systems that cannot lock
PATIENCE = 0.2  # seconds to wait for a process that holds a lock for a moment only


@contextmanager
def locked(lock: Path, busy: str, *, wait: bool = False) -> Iterator[bool]:
    """Hold a lock while the block runs. Inside the block, the same thread may take the lock again.

    The operating system releases the lock when the process ends, also after a kill, so a lock file that is left over
    blocks nobody. The block removes the file. On a file system that cannot lock, the block runs without the lock.

    Args:
        lock: the lock file, in a folder that exists.
        busy: message of the error if another process or thread holds the lock.
        wait: wait until the other process releases the lock.

    Yields:
        Whether this block took the lock: False if an outer block holds it, or if the file system cannot lock.

    Raises:
        ToxlocError: another process or thread holds the lock, or the file cannot be written.

    Example:
        >>> with locked(Path(".results.lock"), "Another process is writing to results."):     # doctest: +SKIP
        ...     write_results()
    """
    from filelock import FileLock, Timeout

    holder = FileLock(lock, is_singleton=True)  # one object per path, so that a thread can take its lock again
    held, outermost = True, not holder.is_locked
    try:
        holder.acquire(timeout=-1 if wait else PATIENCE)
    except Timeout:
        raise ToxlocError(busy) from None
    except NotImplementedError:
        held = False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            reason = error.strerror or error
            raise ToxlocError(f"{lock.parent} cannot be written to ({reason}); choose another folder.") from error
        held = False
    try:
        yield held and outermost
    finally:
        if held and outermost:
            with suppress(OSError):
                lock.unlink()  # before the release: a waiting process then finds no file, and creates it again
        if held:
            holder.release()
