"""Write safetensors files through a hash, and read tensors back: the only tensor format of this project.

Format: https://github.com/huggingface/safetensors (8 bytes of header length, a JSON header, the raw bytes).
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.errors import CheckpointError
from pretrain.files.untrusted_files import open_regular, parse_json

MAX_HEADER_BYTES = 100_000_000

_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip

_FLOATS = ("F64", "F32", "F16", "BF16")

_SHARDS = "pieces"  # key of the header's metadata: JSON {name: [shape of the full tensor, offset of the shard in it]}


@dataclass(frozen=True)
class TensorShard:
    """The block of a full tensor that one process holds."""

    values: Tensor
    full_shape: Sequence[int]
    offset: Sequence[int]  # index in the full tensor of the block's first number, by axis


def write_tensors(path: Path, tensors: Mapping[str, Tensor | TensorShard]) -> str:
    """Write tensors as safetensors, flushed to the disk, and return the sha256 of the file as hex.

    The header's metadata maps each shard to its full tensor. Tensors are written one by one, so that only one at a time
    is copied from a GPU. Raises OSError as the disk does, CheckpointError for a dtype that the format cannot hold.
    """
    values = {name: part.values if isinstance(part, TensorShard) else part.detach() for name, part in tensors.items()}
    shards = {
        name: [[*part.full_shape], [*part.offset]] for name, part in tensors.items() if isinstance(part, TensorShard)
    }
    formats = {name: (tensor.dtype, tensor.shape) for name, tensor in values.items()}
    return write_each(path, formats, values.__getitem__, {_SHARDS: json.dumps(shards)} if shards else None)


def write_each(
    path: Path,
    formats: Mapping[str, tuple[torch.dtype, Sequence[int]]],
    value: Callable[[str], Tensor],
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Write tensors as `write_tensors` does, computing each by `value(name)` only when it is written.

    `formats` gives the dtype and shape of each tensor; `metadata` is text by name for the header.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, (dtype, shape) in formats.items():
        if dtype not in _NAMES:
            raise CheckpointError(
                f"{path.name} cannot hold {name} of {dtype}. Try one of {', '.join(_NAMES.values())}."
            )
        size = torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # keeps the tensors aligned
    digest = hashlib.sha256()
    with path.open("xb") as file:
        for part in (len(text).to_bytes(8, "little"), text):
            digest.update(part)
            file.write(part)
        for name in formats:
            data = value(name).cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            digest.update(data)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Block:
    """What one file holds of a tensor: all of it, or the block at `offset` of a tensor in several files."""

    path: Path
    file: Any
    shape: torch.Size
    offset: tuple[int, ...] | None

    def read(self, name: str) -> Tensor:
        from safetensors import SafetensorError

        try:
            tensor: Tensor = self.file.get_tensor(name)
        except (OSError, SafetensorError, ValueError) as error:
            raise CheckpointError(f"{self.path} cannot be read: {error}") from error
        return tensor

    @property
    def spans(self) -> list[tuple[int, int]]:
        """The first index and the index after the last, by axis of the full tensor."""
        return [(start, start + size) for start, size in zip(self.offset or (), self.shape, strict=True)]


class TensorFiles(Mapping[str, Tensor]):
    """The tensors of one or several safetensors files by name, each read from the disk on access.

    A tensor whose shards are in several files is joined. Raises CheckpointError if a file is damaged or missing, two
    hold the same tensor, or shards do not cover their tensor exactly once.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.shapes: dict[str, torch.Size] = {}
        self._formats: dict[str, str] = {}
        self._blocks: dict[str, list[_Block]] = {}
        for path in paths:
            file = _open(path)
            shards = _read_shards(path, file)
            for name in file.keys():  # noqa: SIM118  (it is no dictionary)
                part = file.get_slice(name)
                shape = torch.Size(part.get_shape())
                full_shape, offset = shards.get(name, (shape, None))
                self._add(name, _Block(path, file, shape, offset), full_shape, str(part.get_dtype()))
        for name, blocks in self._blocks.items():
            self._check_coverage(name, blocks)

    def __getitem__(self, name: str) -> Tensor:
        return self.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._blocks)

    def __len__(self) -> int:
        return len(self._blocks)

    def _add(self, name: str, block: _Block, full_shape: torch.Size, dtype: str) -> None:
        if name in self._blocks:
            first = self._blocks[name][0]
            if block.offset is None or first.offset is None:
                raise CheckpointError(f"{block.path} and {first.path.name} both hold {name!r}.")
            if (self.shapes[name], self._formats[name]) != (full_shape, dtype):
                raise CheckpointError(
                    f"{block.path} and {first.path.name} hold shards of {name!r} of different full shapes or dtypes."
                )
        if block.offset is not None and any(end > n for (_, end), n in zip(block.spans, full_shape, strict=True)):
            raise CheckpointError(f"{block.path} holds a shard of {name!r} that extends beyond its full shape.")
        self.shapes[name], self._formats[name] = full_shape, dtype
        self._blocks.setdefault(name, []).append(block)

    def _check_coverage(self, name: str, blocks: list[_Block]) -> None:
        if blocks[0].offset is None:
            return
        stored, expected = sum(math.prod(block.shape) for block in blocks), math.prod(self.shapes[name])
        if stored != expected:
            raise CheckpointError(
                f"{blocks[0].path.parent} holds {stored:,} of the {expected:,} numbers of {name!r}: a file is missing, "
                "or one is too many."
            )
        if overlap := _overlap(blocks):
            raise CheckpointError(f"{overlap[1].path} and {overlap[0].path.name} hold overlapping shards of {name!r}.")

    def read(self, name: str) -> Tensor:
        """Return a full tensor on the CPU, in the dtype it was written in."""
        blocks = self._blocks[name]
        first = blocks[0].read(name)
        if blocks[0].offset is None:
            return first
        tensor = torch.zeros(self.shapes[name], dtype=first.dtype)
        for block in blocks:
            tensor[tuple(slice(*span) for span in block.spans)] = block.read(name)
        return tensor

    def check_weight(self, name: str, shape: torch.Size, hint: str) -> None:
        """Raise CheckpointError, ending in `hint`, unless a tensor is of floating point and of this shape."""
        path = self._blocks[name][0].path
        if self._formats[name] not in _FLOATS:
            raise CheckpointError(
                f"{path}: {name} is of dtype {self._formats[name]}, weights are of {', '.join(_FLOATS)}. {hint}"
            )
        if self.shapes[name] != shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(self.shapes[name])}, the model's {tuple(shape)}. {hint}"
            )


def _overlap(blocks: list[_Block]) -> tuple[_Block, _Block] | None:
    """Return two blocks of a tensor that share a number, or None.

    Sweeps along the first axis: each block is compared with those that end after its start.
    """
    active: list[_Block] = []
    for block in sorted((b for b in blocks if math.prod(b.shape)), key=lambda b: b.spans[:1]):
        active = [other for other in active if not block.spans or other.spans[0][1] > block.spans[0][0]]
        for other in active:
            axes = zip(block.spans, other.spans, strict=True)
            if all(start < other_end and other_start < end for (start, end), (other_start, other_end) in axes):
                return other, block
        active.append(block)
    return None


def _read_shards(path: Path, file: Any) -> dict[str, tuple[torch.Size, tuple[int, ...]]]:
    """Return the full shape and the offset of each shard in a file, after checking the untrusted metadata."""
    text = (file.metadata() or {}).get(_SHARDS)
    if text is None:
        return {}
    try:
        shards = {}
        for name, (full_shape, offset) in parse_json(text).items():
            axes = len(file.get_slice(name).get_shape())
            valid = all(isinstance(n, int) and n >= 0 for n in [*full_shape, *offset])
            if not valid or not len(full_shape) == len(offset) == axes:
                raise ValueError(name)
            shards[name] = torch.Size(full_shape), tuple(offset)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read: its metadata of shards is invalid ({error})") from error
    return shards


def _open(path: Path) -> Any:
    """Return an open safetensors file, its header compared with the file's size."""
    from safetensors import SafetensorError, safe_open

    try:
        with open_regular(path) as file:
            header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{path} declares a header of {header_bytes:,} bytes; the limit is {MAX_HEADER_BYTES:,}."
            )
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
