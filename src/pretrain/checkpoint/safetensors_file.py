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


_PIECES = "pieces"  # key of the header's metadata: JSON {name: [shape of the whole tensor, where the piece begins]}


@dataclass(frozen=True)
class TensorShard:
    """The block of a larger tensor that one process holds."""

    values: Tensor
    whole: Sequence[int]  # shape of the larger tensor
    offset: Sequence[int]  # where in it the block begins


def write_tensors(path: Path, tensors: Mapping[str, Tensor | TensorShard]) -> str:
    """Write tensors as safetensors, flushed to the disk, and return the sha256 of the file as hex.

    The header's metadata maps each shard to its tensor. Tensors are written one by one, so that only one is copied from
    a GPU at a time. Raises OSError where the disk does, CheckpointError for a number format that the file
    has no name for.
    """
    values = {name: part.values if isinstance(part, TensorShard) else part.detach() for name, part in tensors.items()}
    pieces = {name: [[*part.whole], [*part.offset]] for name, part in tensors.items() if isinstance(part, TensorShard)}
    formats = {name: (tensor.dtype, tensor.shape) for name, tensor in values.items()}
    return write_each(path, formats, values.__getitem__, {_PIECES: json.dumps(pieces)} if pieces else None)


def write_each(
    path: Path,
    formats: Mapping[str, tuple[torch.dtype, Sequence[int]]],
    value: Callable[[str], Tensor],
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Write tensors that `value(name)` makes one at a time, of the number formats and shapes given; else as above.

    `metadata` is text by name that the file carries along.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, (dtype, shape) in formats.items():
        if dtype not in _NAMES:
            raise CheckpointError(f"{name} is of {dtype}, which {path.name} cannot hold.")
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


class TensorFiles(Mapping[str, Tensor]):
    """The tensors of one or several safetensors files by name, each read from the disk when it is asked for.

    A tensor whose pieces are in several files is put together. Raises CheckpointError where a file is damaged or
    missing, two hold a tensor of the same name, or pieces do not make a whole.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.shapes: dict[str, torch.Size] = {}
        self._formats: dict[str, str] = {}
        self._files: dict[str, list[tuple[Path, Any, list[int] | None]]] = {}  # with the place of each piece
        for path in paths:
            file = _open(path)
            pieces = _pieces(path, file)
            for name in file.keys():  # noqa: SIM118  (it is no dictionary)
                part = file.get_slice(name)
                self._add(name, path, file, torch.Size(part.get_shape()), str(part.get_dtype()), pieces.get(name))
        for name in self._files:
            self._check_whole(name)

    def __getitem__(self, name: str) -> Tensor:
        return self.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def _add(
        self, name: str, path: Path, file: Any, shape: torch.Size, kind: str, piece: tuple[torch.Size, list[int]] | None
    ) -> None:
        whole, offset = piece or (shape, None)
        if name in self._files:
            first, _, before = self._files[name][0]
            if offset is None or before is None:
                raise CheckpointError(f"{path} holds {name!r}, which {first.name} holds too.")
            if (self.shapes[name], self._formats[name]) != (whole, kind):
                raise CheckpointError(f"{path} holds a piece of {name!r} that does not fit the one in {first.name}.")
        if offset is not None and any(at + n > size for at, n, size in zip(offset, shape, whole, strict=True)):
            raise CheckpointError(f"{path} holds a piece of {name!r} that lies beyond it.")
        self.shapes[name], self._formats[name] = whole, kind
        self._files.setdefault(name, []).append((path, file, offset))

    def _check_whole(self, name: str) -> None:
        path, _, offset = self._files[name][0]
        if offset is None:
            return
        found = sum(math.prod(file.get_slice(name).get_shape()) for _, file, _ in self._files[name])
        expected = math.prod(self.shapes[name])
        if found != expected:
            raise CheckpointError(
                f"{path.parent} holds {found:,} of the {expected:,} numbers of {name!r}: a file is missing, or one is "
                "too many."
            )
        boxes = [(path, offset or [], file.get_slice(name).get_shape()) for path, file, offset in self._files[name]]
        if twice := _overlap(boxes):
            raise CheckpointError(
                f"{twice[1]} holds numbers of {name!r} that {twice[0].name} holds too, and others are nowhere."
            )

    def read(self, name: str) -> Tensor:
        """Return a tensor on the CPU, as it was written."""
        path, file, offset = self._files[name][0]
        first = _tensor(path, file, name)
        if offset is None:
            return first
        found = torch.zeros(self.shapes[name], dtype=first.dtype)
        for path, file, offset in self._files[name]:
            part = _tensor(path, file, name)
            found[tuple(slice(at, at + n) for at, n in zip(offset or (), part.shape, strict=True))] = part
        return found

    def check_weight(self, name: str, shape: torch.Size, hint: str) -> None:
        """Raise CheckpointError, ending in `hint`, where a tensor is no weight of this shape."""
        path = self._files[name][0][0]
        if self._formats[name] not in _FLOATS:
            raise CheckpointError(
                f"{path}: {name} is of format {self._formats[name]}, and weights are of one of "
                f"{', '.join(_FLOATS)}. {hint}"
            )
        if self.shapes[name] != shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(self.shapes[name])}, the model's {tuple(shape)}. {hint}"
            )


def _overlap(boxes: list[tuple[Path, list[int], list[int]]]) -> tuple[Path, Path] | None:
    """Return the files of two blocks of a tensor that share a number, given the place and shape of each; or None.

    Blocks are taken in the order of their first axis, and compared with those that reach as far.
    """
    open_ones: list[tuple[Path, list[int], list[int]]] = []
    for path, offset, shape in sorted((box for box in boxes if math.prod(box[2])), key=lambda box: box[1][:1]):
        open_ones = [other for other in open_ones if not offset or other[1][0] + other[2][0] > offset[0]]
        for other, at, size in open_ones:
            axes = zip(offset, shape, at, size, strict=True)
            if all(one < b + m and b < one + n for one, n, b, m in axes):
                return other, path
        open_ones.append((path, offset, shape))
    return None


def _tensor(path: Path, file: Any, name: str) -> Tensor:
    from safetensors import SafetensorError

    try:
        tensor: Tensor = file.get_tensor(name)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return tensor


def _pieces(path: Path, file: Any) -> dict[str, tuple[torch.Size, list[int]]]:
    """Return shape of the whole and place of each tensor of a file that is a piece; nothing in it is trusted."""
    text = (file.metadata() or {}).get(_PIECES)
    if text is None:
        return {}
    try:
        found = {}
        for name, (whole, offset) in parse_json(text).items():
            numbers = [*whole, *offset, len(file.get_slice(name).get_shape())]
            if not all(isinstance(n, int) and n >= 0 for n in numbers) or not len(whole) == len(offset) == numbers[-1]:
                raise ValueError(name)
            found[name] = torch.Size(whole), offset
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read: its metadata of shards is invalid ({error})") from error
    return found


def _open(path: Path) -> Any:
    """Return a safetensors file whose header has been read and compared with the file's size."""
    from safetensors import SafetensorError, safe_open

    try:
        with open_regular(path) as file:
            header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{path} claims a header of {header_bytes:,} bytes, more than the {MAX_HEADER_BYTES:,} that we read."
            )
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
