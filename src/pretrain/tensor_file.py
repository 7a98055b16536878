"""Tensors in a file: safetensors, streamed out through a hash, and the only way this project reads any back.

Format: https://github.com/huggingface/safetensors (8 bytes of header length, a JSON header, the raw bytes).
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_FLOATS = ("F64", "F32", "F16", "BF16")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], whole: Callable[[Tensor], Tensor] = Tensor.detach) -> str:
    """Write tensors as safetensors, flushed to the disk, and return the sha256 of the file as hex.

    `whole` gathers a tensor that is spread over processes. Works tensor by tensor, so that memory holds one of them
    beside the model. Raises OSError where the disk does, CheckpointError for a number format
    that the file has no name for.
    """
    formats = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    return write_each(path, formats, lambda name: whole(tensors[name]))


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


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, on the CPU; raises CheckpointError where it is damaged or missing."""
    files = TensorFiles([path])
    return {name: files.read(name) for name in files.shapes}


class TensorFiles:
    """The tensors of one or several safetensors files by name, each read from the disk when it is asked for.

    Raises CheckpointError where a file is damaged or missing, or two hold a tensor of the same name.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.shapes: dict[str, torch.Size] = {}
        self._formats: dict[str, str] = {}
        self._files: dict[str, tuple[Path, Any]] = {}
        for path in paths:
            file = _open(path)
            for name in file.keys():  # noqa: SIM118  (it is no dictionary)
                if name in self._files:
                    raise CheckpointError(f"{path} holds {name!r}, which {self._files[name][0].name} holds too.")
                part = file.get_slice(name)
                self.shapes[name] = torch.Size(part.get_shape())
                self._formats[name] = str(part.get_dtype())
                self._files[name] = (path, file)

    def read(self, name: str) -> Tensor:
        """Return a tensor on the CPU, as it was written."""
        from safetensors import SafetensorError

        path, file = self._files[name]
        try:
            tensor: Tensor = file.get_tensor(name)
        except (OSError, SafetensorError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        return tensor

    def check_weight(self, name: str, shape: torch.Size, hint: str) -> None:
        """Raise CheckpointError, ending in `hint`, where a tensor is no weight of this shape."""
        path, _ = self._files[name]
        if self._formats[name] not in _FLOATS:
            raise CheckpointError(
                f"{path}: {name} is of format {self._formats[name]}, and weights are of one of "
                f"{', '.join(_FLOATS)}. {hint}"
            )
        if self.shapes[name] != shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(self.shapes[name])}, the model's {tuple(shape)}. {hint}"
            )


def _open(path: Path) -> Any:
    """Return a safetensors file whose header has been read and compared with the file's size."""
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{path} claims a header of {header_bytes:,} bytes, more than the {MAX_HEADER_BYTES:,} that we read."
            )
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
