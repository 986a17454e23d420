"""Sets of units that are replaced together, and D with each of the sets replaced."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64

from ..localization.pair_batch import PairReader, Replacement
from ..models.sites import BySite
from ..support.progress import track
from .replacement import ReplacedPart, ReplacedUnits

INTACT, EMPTY = 0, 1  # columns of the sets in which nothing and everything is replaced


class UnitSets:
    """The different sets of replaced units, each with a column in the results: `INTACT`, `EMPTY`, and further sets."""

    def __init__(self, lengths: BySite[int]):
        self.n_units = sum(lengths.values())
        self._ends = np.cumsum(list(lengths.values()))[:-1]
        self._packed: list[bytes] = []
        self._columns: dict[bytes, int] = {}
        for everything in (False, True):
            self._add(np.full(self.n_units, everything))

    def __len__(self) -> int:
        return len(self._packed)

    def columns(self, values: Float64[np.ndarray, " n_units"], counts: Sequence[int], removed: bool) -> list[int]:
        """Return the columns of the sets of the units with the highest values, one per count; new sets are added.

        With `removed`, these units are replaced; otherwise, all others are.
        """
        rank = np.empty(self.n_units, dtype=np.int64)
        rank[np.argsort(-values, kind="stable")] = np.arange(self.n_units)
        return [self._add((rank < count) == removed) for count in counts]

    def replaced(self, column: int) -> "list[Bool[np.ndarray, ' _n']]":
        """Return whether each unit is replaced, by site."""
        bits = np.unpackbits(np.frombuffer(self._packed[column], np.uint8), count=self.n_units)
        return np.split(bits.astype(bool), self._ends)

    def _add(self, replaced: Bool[np.ndarray, " n_units"]) -> int:
        packed = np.packbits(replaced).tobytes()
        if packed not in self._columns:
            self._columns[packed] = len(self)
            self._packed.append(packed)
        return self._columns[packed]


@torch.inference_mode()
def read_sets(
    reader: PairReader,
    parts: Sequence[ReplacedPart],
    sets: UnitSets,
    columns: Sequence[int],
    group: Int64[np.ndarray, " n_pairs"],
) -> Float64[np.ndarray, "groups columns"]:
    """Return the sum of D over the pairs of each group, with each of some sets replaced."""
    sums = np.zeros((group.max() + 1, len(columns)))
    for index in track(reader.groups(), "faithfulness"):
        batch = reader.batch(index)
        for i, column in enumerate(columns):
            with _placed(parts, sets.replaced(column), batch.replacement):
                np.add.at(sums[:, i], group[index], batch.difference())
    return sums


@contextmanager
def _placed(
    parts: Sequence[ReplacedPart], replaced: "Sequence[Bool[np.ndarray, ' _n']]", new: Replacement
) -> Iterator[None]:
    """Replace the chosen units of every part, or the chosen parts, for the duration of the block."""
    with ExitStack() as stack:
        for part, units in zip(parts, replaced, strict=True):
            if not units.any():
                continue
            if isinstance(part, ReplacedUnits):
                part.choose(units)
            stack.enter_context(part.placed(new))
        yield
