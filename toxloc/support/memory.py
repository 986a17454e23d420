"""The most memory that a stretch of work took."""

import sys
from dataclasses import dataclass
from types import TracebackType

import torch


@dataclass
class PeakMemory:
    """Measures a block: `with PeakMemory() as peak: ...`, then read the attributes.

    Attributes:
        resident_mb: the process's resident memory at its highest within the block, in MB. Elsewhere than on Linux,
            where the kernel cannot start counting anew, since the process began; None where it is not known at all.
        device_mb: likewise what torch allocated on the current CUDA device; None without one.
    """

    resident_mb: float | None = None
    device_mb: float | None = None

    def __enter__(self) -> "PeakMemory":
        _forget_resident()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.resident_mb = _resident()
        if torch.cuda.is_available():
            self.device_mb = torch.cuda.max_memory_allocated() / 1e6

    def to_dict(self) -> dict[str, float | None]:
        """Return the fields by name, whole megabytes."""
        return {name: None if value is None else round(value) for name, value in vars(self).items()}


def _forget_resident() -> None:
    if sys.platform == "linux":
        try:
            with open("/proc/self/clear_refs", "w") as stream:
                stream.write("5")
        except OSError:
            pass  # a container may forbid it; the peak is then the process's


def _resident() -> float | None:
    if sys.platform == "linux":
        with open("/proc/self/status") as stream:
            return next(int(line.split()[1]) * 1024 / 1e6 for line in stream if line.startswith("VmHWM"))
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
