"""The tensors that are alive, to test that memory does not grow."""

import gc

import pytest
import torch

from toxloc.localization.pair_batch import PairReader
from toxloc.models.batching import TOKENS_PER_BATCH


def bytes_alive() -> int:
    """Return the bytes of all tensors together, after the garbage was collected."""
    gc.collect()
    return sum(t.nbytes for t in gc.get_objects() if isinstance(t, torch.Tensor))


def alive_before_each_batch(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the bytes alive before each batch of pairs is read, one pair per batch."""
    alive: list[int] = []
    original = PairReader.batch

    def watched(*args):
        alive.append(bytes_alive())
        return original(*args)

    monkeypatch.setattr(PairReader, "batch", watched)
    monkeypatch.setitem(TOKENS_PER_BATCH, "cpu", 1)
    return alive
