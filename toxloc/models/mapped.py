"""Weights that stay in their files: parameters whose memory is a private map of a safetensors file.

The operating system reads the pages of a map from the disk when they are used, and drops them when memory is short, so
a model may be larger than memory. An edit makes private copies of the pages that it writes; the file never changes.
"""

import json
import mmap
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
COMPARED = 1 << 26  # bytes that are compared at once
_MAPS: "WeakSet[MappedFile]" = WeakSet()


class MappedFile(mmap.mmap):
    """A private, writable map of a safetensors file. Tensors in its memory keep it open.

    Attributes:
        stream: the open file.
        tensors: offset in bytes, dtype and shape of each tensor in the file, by name.
        address: where the map begins in memory.
        original: all bytes of a second map, into which nothing is written.
    """

    stream: BufferedReader
    tensors: dict[str, tuple[int, torch.dtype, list[int]]]
    address: int
    original: Tensor

    @classmethod
    def of(cls, stream: BufferedReader) -> "MappedFile":
        """Map an open file."""
        mapped = cls(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        length = int.from_bytes(mapped[:8], "little")
        entries = json.loads(mapped[8 : 8 + length])
        mapped.stream = stream
        mapped.tensors = {
            name: (8 + length + entry["data_offsets"][0], DTYPES[entry["dtype"]], entry["shape"])
            for name, entry in entries.items()
            if name != "__metadata__" and entry["dtype"] in DTYPES
        }
        mapped.original = torch.frombuffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY), dtype=torch.uint8)
        mapped.address = mapped.memory.data_ptr()
        _MAPS.add(mapped)
        return mapped

    @property
    def memory(self) -> Tensor:
        """All bytes of the map."""
        return torch.frombuffer(self, dtype=torch.uint8)

    def tensor(self, name: str) -> Tensor:
        """Return a tensor of the file, in the memory of the map."""
        start, dtype, shape = self.tensors[name]
        size = torch.Size(shape).numel() * dtype.itemsize
        return self.memory[start : start + size].view(dtype).view(shape)

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor is in the memory of this map."""
        return tensor.is_cpu and 0 <= tensor.data_ptr() - self.address < len(self)

    def is_original(self, start: int, stop: int) -> bool:
        """Whether the bytes of a range are those of the file."""
        return all(
            torch.equal(self.memory[i : min(i + COMPARED, stop)], self.original[i : min(i + COMPARED, stop)])
            for i in range(start, stop, COMPARED)
        )

    def restore(self, start: int, stop: int) -> None:
        """Give the bytes of a range their values from the file, and free their private copies."""
        first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, stop // mmap.PAGESIZE * mmap.PAGESIZE
        if sys.platform == "linux" and first < last:  # only Linux promises that dropped pages are read again
            self.madvise(mmap.MADV_DONTNEED, first, last - first)
        else:
            first = last = stop
        for edge in (slice(start, first), slice(last, stop)):
            self.memory[edge] = self.original[edge]


@dataclass(frozen=True)
class FileValues:
    """The values that a mapped weight has in its file.

    Attributes:
        weight: the weight, which is in the memory of `mapped`.
        mapped: the map of the file.
        start: offset in the file of its first byte.
    """

    weight: Tensor
    mapped: MappedFile
    start: int

    @classmethod
    def of(cls, weight: Tensor) -> "FileValues | None":
        """Return the values in the file; None if a weight is not mapped, is not dense, or has other values now."""
        mapped = map_of(weight)
        if mapped is None or not (weight.is_contiguous() or weight.mT.is_contiguous()):
            return None
        values = cls(weight, mapped, weight.data_ptr() - mapped.address)
        return values if mapped.is_original(values.start, values._stop) else None

    @property
    def _stop(self) -> int:
        return self.start + self.weight.nbytes

    def tensor(self) -> Tensor:
        """Return the values, in the memory of the map that is never written."""
        flat = self.mapped.original[self.start : self._stop].view(self.weight.dtype)
        if self.weight.is_contiguous():
            return flat.view(self.weight.shape)
        return flat.view(self.weight.mT.shape).mT

    def restore(self) -> None:
        """Give the weight its values from the file."""
        self.mapped.restore(self.start, self._stop)


def map_of(tensor: Tensor) -> MappedFile | None:
    """Return the map whose memory a tensor is in, or None."""
    return next((mapped for mapped in list(_MAPS) if mapped.holds(tensor)), None)


def map_weights(model: Any, files: Sequence[Path]) -> None:
    """Move the parameters of a model into maps of the files that it was loaded from.

    Parameters that the files do not hold in the same shape and dtype stay in memory.

    Args:
        model: a Hugging Face model, just loaded from the files.
        files: its safetensors files.
    """
    mapped = [MappedFile.of(path.open("rb")) for path in files]
    by_name = {name: file for file in mapped for name in file.tensors}
    for parameter, (name, file) in zip(model.parameters(), named_tensors(model, by_name), strict=True):
        if file is not None:
            _, dtype, shape = file.tensors[name]
            if dtype == parameter.dtype and shape == list(parameter.shape) and parameter.numel():
                parameter.data = file.tensor(name)


def named_tensors(model: Any, by_name: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield, for each parameter of a model, its name in files and what `by_name` holds under it, or None.

    The files of a model with an unembedding may lack the name of the inner model at the beginning, and the other way
    round.
    """
    prefix = f"{model.base_model_prefix}."
    for name, _ in model.named_parameters():
        names = (name, prefix + name, name.removeprefix(prefix))
        known = next((candidate for candidate in names if candidate in by_name), name)
        yield known, by_name.get(known)


def is_mapped(model: nn.Module) -> bool:
    """Whether more than half of the weights of a model are in maps of files."""
    total = sum(p.nbytes for p in model.parameters())
    return 2 * sum(p.nbytes for p in model.parameters() if map_of(p) is not None) > total


def remapped(model: nn.Module) -> dict[int, nn.Parameter]:
    """Return copies of the mapped parameters of a model in new maps of the same files, by id, for `copy.deepcopy`.

    Parameters whose values are not those of the file are left out.
    """
    maps: dict[int, MappedFile] = {}
    copies: dict[int, nn.Parameter] = {}
    for parameter in model.parameters():
        values = FileValues.of(parameter)
        if values is None:
            continue
        mapped = maps.setdefault(id(values.mapped), maps.get(id(values.mapped)) or MappedFile.of(values.mapped.stream))
        memory = mapped.memory[values.start : values.start + parameter.nbytes]
        copies[id(parameter)] = nn.Parameter(memory.view(parameter.dtype).view(parameter.shape), requires_grad=False)
    return copies
