"""Hashes of the pieces of a store's files, each checked before its first use.

A store of many GB cannot be read whole before a run begins, and a run reads it in random order. So the manifest holds a
hash of every 2 MiB of a file's body, and each process checks the pieces that it reads. The hash is xxh3_64, which finds
damage at memory speed; the sha256 of whole files is for `Store.verify`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from pretrain.errors import DataError

PIECE_BYTES = 1 << 21
DIGITS = 16  # hexadecimal, of one hash; the hashes of a file are joined to one string

Ints = npt.NDArray[np.int64]


class PieceHasher:
    """Hashes the pieces of a file as it is written."""

    def __init__(self) -> None:
        self._piece, self._bytes, self._hashes = xxhash.xxh3_64(), 0, ""

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Hash the next bytes of the file."""
        view = memoryview(data)
        while view:
            part = view[: PIECE_BYTES - self._bytes]
            self._piece.update(part)
            self._bytes += len(part)
            view = view[len(part) :]
            if self._bytes == PIECE_BYTES:
                self._close()

    def finish(self) -> str:
        """Return the hashes of all pieces; the last may be shorter than the others."""
        if self._bytes:
            self._close()
        return self._hashes

    def _close(self) -> None:
        self._hashes += self._piece.hexdigest()
        self._piece, self._bytes = xxhash.xxh3_64(), 0


def hashes_of(body: npt.NDArray[Any]) -> str:
    """Return the hashes of the pieces of a file's body."""
    hasher = PieceHasher()
    hasher.update(body.data.cast("B") if body.size else b"")
    return hasher.finish()


def piece_count(size: int) -> int:
    """Return the number of pieces of a body of `size` bytes."""
    return -(-size // PIECE_BYTES)


class CheckedPieces:
    """Compares the pieces of all files of one kind with their hashes, each once."""

    def __init__(
        self, hashes: list[str], itemsize: int, body: Callable[[int], npt.NDArray[Any]], path: Callable[[int], Path]
    ) -> None:
        """Take the hashes of each shard's file; `body` and `path` return its body and path."""
        self._hashes, self._itemsize, self._body, self._path = hashes, itemsize, body, path
        self._ends = np.cumsum([len(of_shard) // DIGITS for of_shard in hashes], dtype=np.int64)
        self._starts = self._ends - [len(of_shard) // DIGITS for of_shard in hashes]
        self._checked = np.zeros(int(self._ends[-1]) if len(self._ends) else 0, np.bool_)

    def check(self, shards: npt.NDArray[Any], firsts: npt.NDArray[Any], lengths: npt.NDArray[Any]) -> None:
        """Check every piece that holds one of the items; DataError names a damaged one.

        For each range of items: its shard, its first item and its length, all (ranges,), within the file.
        """
        first = self._starts[shards] + firsts * self._itemsize // PIECE_BYTES
        last = self._starts[shards] + (firsts + np.maximum(lengths, 1) - 1) * self._itemsize // PIECE_BYTES
        if self._checked[first].all() and self._checked[last].all() and (last - first < 2).all():
            return
        for piece in {piece for a, b in zip(first.tolist(), last.tolist(), strict=True) for piece in range(a, b + 1)}:
            if not self._checked[piece]:
                self._check_piece(piece)

    def check_file(self, shard: int) -> None:
        """Check all pieces of a shard's file."""
        for piece in range(int(self._starts[shard]), int(self._ends[shard])):
            if not self._checked[piece]:
                self._check_piece(piece)

    def _check_piece(self, piece: int) -> None:
        shard = int(np.searchsorted(self._ends, piece, side="right"))
        number = piece - int(self._starts[shard])
        items = PIECE_BYTES // self._itemsize
        values = self._body(shard)[number * items : (number + 1) * items]
        if xxhash.xxh3_64_hexdigest(values.data) != self._hashes[shard][number * DIGITS : (number + 1) * DIGITS]:
            first = number * items
            raise DataError(
                f"{self._path(shard)} is damaged: its items {first:,} to {first + len(values) - 1:,} do not match "
                "their hash. Delete the folder of prepared data around it, and the text is prepared again."
            )
        self._checked[piece] = True
