import errno

import pytest
import torch

from toxloc.support.faults import fault_of


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "x"), "No space left on device; free some space"),
        (OSError(errno.EMFILE, "x"), "Too many open files; raise the limit on open files"),
        (MemoryError(), "Cannot allocate memory; close other programs"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "Cannot allocate memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), "Cannot allocate memory"),
        (Exception("Error while serializing: I/O error: File too large (os error 27)"), "File too large; raise the"),
        (OSError(errno.ENOENT, "x"), None),
        (OSError("no number"), None),
        (Exception("Error while reading (os error 2)"), None),
        (RuntimeError("shapes differ"), None),
        (ValueError("out of memory"), None),
    ],
)
def test_faults_of_the_machine_are_told_from_other_errors(error, words):
    fault = fault_of(error)
    assert fault is None if words is None else words in fault
