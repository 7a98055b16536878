"""Rows sorted by partition in one file per task, so that a partition is read from all files without the rest.

A file is a head of four words, int64: a mark, the number of partitions, the bytes of a row, and a hash of the offsets;
then the offsets of the partitions in rows, int64 (partitions + 1,); then the rows as they lie in memory. All is
little-endian. Nothing in it is ever executed. The same rows give the same bytes.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from pretrain.data.curation.near_duplicates.shingles import Hashes, Ints
from pretrain.errors import DataError
from pretrain.files.atomic_files import write_blocks_atomically

MARK = int.from_bytes(b"rows v01", "little")  # other bytes when the layout changes
HEAD_BYTES = 32
BLOCK_ROWS = 1 << 16  # written at once
SMALL_PARTITION, LARGE_PARTITION = 16_000_000, 128_000_000  # bytes of a task's rows; it needs four times that memory
PARTITIONS = 1024  # small ones, then they grow: each is a piece of every unit's file
_REMEDY = "Delete it, and the stage that wrote it runs again."

Rows = npt.NDArray[Any]  # of a structured dtype, or uint64


def number_of_partitions(rows_bytes: int) -> int:
    """Return into how many partitions rows of so many bytes are divided; 1 or more."""
    return 1 + rows_bytes // min(LARGE_PARTITION, max(SMALL_PARTITION, rows_bytes // PARTITIONS))


def partitions_of_keys(keys: Hashes, partitions: int) -> Ints:
    """Return the partition of each key: equal ranges of the upper 32 bits."""
    return ((keys >> np.uint64(32)) * np.uint64(partitions) >> np.uint64(32)).astype(np.int64)


def write_rows(path: Path, rows: Rows, partition_of_row: Ints, partitions: int) -> None:
    """Write rows (n,), sorted by partition; within a partition they keep their order."""

    def blocks() -> Iterator[Rows]:
        for start in range(0, len(rows), BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            yield rows[block if order is None else order[block]]

    order = None if partitions == 1 else np.argsort(partition_of_row, kind="stable")
    _write(path, np.bincount(partition_of_row, minlength=partitions), rows.dtype, blocks())


def write_sets(path: Path, sets: Sequence[Rows], partition_of_set: Ints, partitions: int, dtype: npt.DTypeLike) -> None:
    """Write the rows of all sets, each set whole in its partition; within a partition sets keep their order."""
    order = np.argsort(partition_of_set, kind="stable")
    counts = np.zeros(partitions, np.int64)
    np.add.at(counts, partition_of_set, np.array([len(each) for each in sets], np.int64))
    _write(path, counts, np.dtype(dtype), (sets[index] for index in order))


def _write(path: Path, counts: Ints, dtype: np.dtype[Any], blocks: Iterable[Rows]) -> None:
    """Write a file of partitions with so many rows each; only a block at a time is copied in memory."""
    kind = dtype.newbyteorder("<")
    offsets = np.zeros(len(counts) + 1, "<i8")
    np.cumsum(counts, out=offsets[1:])
    head = np.array([MARK, len(counts), kind.itemsize, _hash(offsets)], "<i8")
    written = (block.astype(kind, copy=False).tobytes() for block in blocks)
    write_blocks_atomically(path, chain([head.tobytes(), offsets.tobytes()], written))


def map_partition(path: Path, partition: int, dtype: npt.DTypeLike) -> Rows:
    """Return the rows of one partition of one file, read when they are looked at.

    Raises DataError if the file is not whole, or of other rows or fewer partitions.
    """
    kind = np.dtype(dtype).newbyteorder("<")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = np.frombuffer(file.read(HEAD_BYTES), "<i8") if size >= HEAD_BYTES else np.zeros(4, "<i8")
        mark, partitions, row_bytes, hashed = (int(word) for word in head)
        start = HEAD_BYTES + 8 * (partitions + 1)
        if mark != MARK or row_bytes != kind.itemsize or not partition < partitions or start > size:
            raise DataError(f"{path} has other rows or another kind. {_REMEDY}")
        offsets = np.frombuffer(file.read(start - HEAD_BYTES), "<i8")
    if hashed != _hash(offsets) or size != start + int(offsets[-1]) * kind.itemsize:
        raise DataError(f"{path} is damaged or cut off. {_REMEDY}")
    first, last = (int(offset) for offset in offsets[partition : partition + 2])
    if first == last:
        return np.empty(0, kind)
    return np.memmap(path, kind, "r", start + first * kind.itemsize, (last - first,))


def _hash(offsets: Ints) -> int:
    return xxhash.xxh3_64_intdigest(offsets.tobytes()) >> 1  # fits int64


def read_partition(paths: Sequence[Path], partition: int, dtype: npt.DTypeLike) -> Rows:
    """Return the rows of one partition of all files, in the order of the files."""
    return concatenated((map_partition(path, partition, dtype) for path in paths), dtype)


def rows_of_unit(paths: Sequence[Path], unit: int, dtype: npt.DTypeLike) -> Rows:
    """Return the rows of a unit's documents, of files of one partition whose rows are sorted by their `document`."""
    found = []
    for path in paths:
        rows = map_partition(path, 0, dtype)
        first, last = (bisect_left(rows["document"], unit + more << 32) for more in (0, 1))
        found.append(rows[first:last])
    return concatenated(found, dtype)


def concatenated(parts: Iterable[Rows], dtype: npt.DTypeLike) -> Rows:
    """Return the rows of all parts in one array, of no parts too."""
    return np.concatenate([np.empty(0, np.dtype(dtype).newbyteorder("<")), *parts])
