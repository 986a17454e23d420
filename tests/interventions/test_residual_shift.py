import pytest
import torch

from tests.conftest import TEXTS, bits, random_model, same_bits
from toxloc import Steering, ToxlocError
from toxloc.interventions.base import KINDS
from toxloc.interventions.methods.value_vector import ValueVector
from toxloc.interventions.residual_shift import ResidualShift

from .methods.test_steering import FAMILIES, after_block, n_hooks

UNIT = torch.eye(16)[3]


def test_the_base_class_is_no_kind_but_its_two_methods_are():
    assert ResidualShift not in KINDS.values()
    assert {kind for kind, cls in KINDS.items() if issubclass(cls, ResidualShift)} == {"steering", "value-vector"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_both_methods_subtract_the_same_vector_and_leave_no_trace(family, dtype):
    lm = random_model(family, dtype=dtype)
    before, hooks, x = bits(lm), n_hooks(lm), after_block(lm, TEXTS[0], 1)
    for shift in (Steering(UNIT, 1, -2.0), ValueVector(UNIT, 1, -2.0)):
        with shift.applied(lm):
            torch.testing.assert_close(after_block(lm, TEXTS[0], 1), (x.float() + 2 * UNIT).to(dtype))
        assert same_bits(before, lm)
        assert n_hooks(lm) == hooks


@pytest.mark.parametrize("make", [Steering, ValueVector])
def test_models_of_another_shape_are_refused(tiny, make):
    with pytest.raises(ToxlocError, match="is for d_model=8; random-gpt2 has d_model=16"):
        make(torch.eye(8)[0], 0, 1.0).apply(tiny)
    with pytest.raises(ToxlocError, match="no layer 2 in random-gpt2"):
        make(UNIT, 2, 1.0).apply(tiny)
    assert tiny.interventions == []
