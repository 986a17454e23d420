import sys

import numpy as np
import pytest

from toxloc.support.memory import PeakMemory


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak is the process's")
def test_a_peak_is_that_of_its_block():
    """800 MB are taken and given back in the first block, and the second does not see them."""
    with PeakMemory() as first:
        np.ones(100_000_000).sum()
    with PeakMemory() as second:
        pass
    assert first.resident_mb > second.resident_mb + 700
    assert set(first.to_dict()) == {"resident_mb", "device_mb"}
