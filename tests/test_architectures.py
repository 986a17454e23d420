import pytest
import torch

from toxloc import TRNE, ContrastSet, Meow2X
from toxloc.architectures import ARCHITECTURES
from toxloc.batching import batches

from .conftest import OTHER_SIZES, SIZES, TEXTS, bits, random_model, same_bits


def logits(lm):
    batch = next(batches(lm, TEXTS))
    with torch.no_grad():
        yield lm.forward(batch.ids, batch.mask)[batch.real]
        yield lm.hf(input_ids=batch.ids, attention_mask=batch.mask).logits[batch.real]


def test_every_family_has_a_small_model_here():
    assert set(SIZES) | set(OTHER_SIZES) == set(ARCHITECTURES)


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_both_methods_work_on_both_trees_and_leave_no_trace(family):
    lm = random_model(family)
    before, untouched = bits(lm), next(logits(lm))
    for parts in (dict(neurons=[(0, 1), (1, 2)], scale=0.2), dict(layers=[1], scale=0.5)):
        found = []
        for mode in ("hooks", "weights"):
            with Meow2X(**parts, mode=mode).applied(lm):
                found += logits(lm)
        for other in found[1:]:
            torch.testing.assert_close(found[0], other, rtol=1e-5, atol=1e-5)
        assert (found[0] - untouched).abs().max() > 1e-4
    with TRNE.fit(lm, ContrastSet(TEXTS[:2], TEXTS[2:]), norm=0.1).applied(lm):
        hooked, plain = logits(lm)
    torch.testing.assert_close(hooked, plain, rtol=1e-5, atol=1e-5)
    assert (hooked - untouched).abs().max() > 1e-4
    assert same_bits(before, lm)
