"""Peak memory of a block of code."""

import ctypes
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

STATUS, REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class PeakMemory:
    """Measure the peak memory of a block: resident memory of the process, and CUDA memory allocated by torch.

    Only Linux can measure the peak resident memory of the block alone. On other systems, and in containers that forbid
    it, `resident` is the peak since the process started.

    Attributes:
        device: a CUDA device; by default the current CUDA device, if one is available. With a CPU device only resident
            memory is measured.
        resident: peak resident memory in bytes; None if the system does not report it.
        allocated: peak CUDA memory in bytes; None without a CUDA device.
        resident_before: resident memory in bytes at the start of the block; None if `resident` is the peak since the
            process started.
        allocated_before: CUDA memory in bytes at the start of the block; None without a CUDA device.

    Example:
        >>> with PeakMemory() as peak:
        ...     ones = torch.ones(1000, 1000)
        >>> peak.to_dict()                                          # doctest: +SKIP
        {'resident_mb': 412, 'device_mb': None}
    """

    device: torch.device | None = None
    resident: int | None = None
    allocated: int | None = None
    resident_before: int | None = None
    allocated_before: int | None = None

    def __enter__(self) -> "PeakMemory":
        self.resident_before = _restart()
        if self._on_cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
            self.allocated_before = torch.cuda.memory_allocated(self.device)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.resident = _resident_peak()
        if self._on_cuda:
            self.allocated = torch.cuda.max_memory_allocated(self.device)

    @property
    def _on_cuda(self) -> bool:
        return torch.cuda.is_available() if self.device is None else self.device.type == "cuda"

    @property
    def rise(self) -> int | None:
        """Largest rise of memory within the block, in bytes: of CUDA memory on a CUDA device, else of resident memory.

        None if the peak or the memory at the start is not known.
        """
        peak, before = (
            (self.allocated, self.allocated_before) if self._on_cuda else (self.resident, self.resident_before)
        )
        return None if peak is None or before is None else max(0, peak - before)

    def to_dict(self) -> dict[str, float | None]:
        """Return the peaks in whole megabytes (10^6 bytes): `resident_mb` and `device_mb`."""
        return {
            name: None if value is None else round(value / 1e6)
            for name, value in (("resident_mb", self.resident), ("device_mb", self.allocated))
        }


def _restart() -> int | None:
    """Reset the kernel's record of the peak, and return the resident memory in bytes; None if it cannot be reset."""
    if sys.platform != "linux":
        return None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)  # return freed memory to the kernel, because the block could reuse it without a rise
    try:
        REFERENCES.write_text("5")  # resets the peak to the memory in use
    except OSError:  # some containers forbid it
        return None
    return _status("VmRSS")


def _resident_peak() -> int | None:
    if sys.platform == "linux":
        return _status("VmHWM")  # not `getrusage`: a process inherits its peak from the parent process
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _status(field: str) -> int:
    """Return the value of a field of Linux's /proc/self/status in bytes."""
    return next(1024 * int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(field))
