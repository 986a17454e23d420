from contextlib import ExitStack

import pytest
import torch
from torch import nn

from toxloc.models.weights import checksum, overwrite


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_weight_is_restored_bit_for_bit(dtype):
    weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = weight.clone()
    with ExitStack() as stack:
        overwrite(weight, 2 * weight.float(), stack)
        assert torch.equal(weight, (2 * before.float()).to(dtype))
        assert not torch.equal(weight, before)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_checksum_notices_a_bit_and_changed_places(dtype):
    model = nn.Linear(4, 3).to(dtype)
    before = checksum(model)
    assert len(before) == 4  # two for each of weight and bias
    with torch.no_grad():
        saved = model.weight.clone()
        model.weight[1, 2] = torch.nextafter(model.weight[1, 2], torch.tensor(9.0, dtype=dtype))
        assert checksum(model) != before
        model.weight.copy_(saved)
        assert checksum(model) == before
        model.weight[[0, 2]] = model.weight[[2, 0]]
        assert checksum(model) != before
        model.weight.copy_(saved)
        model.weight[:, [0, 1]] = model.weight[:, [1, 0]]
        assert checksum(model) != before


def test_weights_that_are_not_in_memory_have_no_checksum():
    assert checksum(nn.Linear(4, 3, device="meta")) is None
