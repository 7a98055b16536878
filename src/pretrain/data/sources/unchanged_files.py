"""Corpus files that must not change after they are hashed: each block is verified before use.

Prepared data is cached under the hash of the corpus files, so it must be made from exactly the bytes that were hashed:
a changed block is an error, and bytes appended later are not read.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import xxhash

from pretrain.errors import DataError, printable

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class HashedFile:
    """The size and block hashes of a file when it was hashed."""

    size: int  # bytes
    blocks: npt.NDArray[np.uint64]  # xxh3_64 of each block of BLOCK_BYTES; the last may be shorter


def hash_file(file: IO[bytes], on_block: Callable[[bytes], None] | None = None) -> tuple[bytes, HashedFile]:
    """Read a file to its end; return its xxh3_128 and its block hashes. `on_block` gets each block in turn."""
    digest, blocks, size = xxhash.xxh3_128(), [], 0
    while block := file.read(BLOCK_BYTES):
        digest.update(block)
        blocks.append(xxhash.xxh3_64_intdigest(block))
        size += len(block)
        if on_block is not None:
            on_block(block)
    return digest.digest(), HashedFile(size, np.array(blocks, np.uint64))


class UnchangedFile(io.RawIOBase):
    """A file opened for reading, as it was when hashed; DataError for a block that has changed."""

    def __init__(self, file: IO[bytes], hashed: HashedFile, path: Path) -> None:
        super().__init__()
        self._file, self._hashed, self._path = file, hashed, path
        self._position = 0
        self._number, self._block = -1, b""  # the last block read

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to another position and return it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._hashed.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer from one block; return the number of bytes, 0 at the end."""
        if self._position >= self._hashed.size:
            return 0
        number, first = divmod(self._position, BLOCK_BYTES)
        if number != self._number:
            self._block, self._number = self._checked_block(number), number
        part = self._block[first : first + len(buffer)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)

    def _checked_block(self, number: int) -> bytes:
        start = number * BLOCK_BYTES
        self._file.seek(start)
        block = self._file.read(min(BLOCK_BYTES, self._hashed.size - start))
        if xxhash.xxh3_64_intdigest(block) != int(self._hashed.blocks[number]):
            raise DataError(
                f"{printable(repr(str(self._path)))} has changed since it was hashed at the start, at byte {start:,} "
                "or later. Start again once nothing changes it, or read a copy; appending to it is safe."
            )
        return block
