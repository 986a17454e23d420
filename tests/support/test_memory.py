import sys

import numpy as np
import pytest
import torch

from toxloc.support.memory import REFERENCES, PeakMemory

restartable = pytest.mark.skipif(not REFERENCES.exists(), reason="only Linux can measure the peak of a block alone")


@pytest.mark.skipif(sys.platform != "linux", reason="on other systems the peak is that of the whole process")
def test_a_peak_is_that_of_its_block():
    """The first block allocates and frees 800 MB; the peak of the second block does not include them."""
    with PeakMemory() as first:
        np.ones(100_000_000).sum()
    with PeakMemory() as second:
        pass
    assert first.resident > second.resident + 700e6
    assert set(first.to_dict()) == {"resident_mb", "device_mb"}
    assert first.to_dict()["resident_mb"] == round(first.resident / 1e6)


@restartable
def test_the_rise_is_the_largest_memory_that_the_block_holds_at_one_time():
    held = np.ones(20_000_000)
    with PeakMemory(torch.device("cpu")) as peak:
        for _ in range(3):
            np.ones(10_000_000).sum()
    assert peak.rise == pytest.approx(80e6, rel=0.1)
    assert peak.rise == peak.resident - peak.resident_before
    assert peak.allocated is peak.allocated_before is None
    assert held.sum() == 20_000_000


@restartable
def test_without_a_reset_of_the_peak_the_rise_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setattr("toxloc.support.memory.REFERENCES", tmp_path / "missing" / "clear_refs")
    with PeakMemory(torch.device("cpu")) as peak:
        pass
    assert peak.rise is None
    assert peak.resident > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_cuda_device_the_rise_is_that_of_cuda_memory():
    held = torch.ones(1_000_000, device="cuda")
    with PeakMemory(held.device) as peak:
        torch.ones(25_000_000, device="cuda")
    assert peak.rise == pytest.approx(100e6, rel=0.01)
    assert peak.to_dict()["device_mb"] == round((held.numel() * 4 + 100e6) / 1e6)
