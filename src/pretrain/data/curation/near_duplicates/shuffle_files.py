"""Rows sorted by partition in one file per task, so that a partition is read from all files without the rest.

A file is the offsets of the partitions as a .npy array, int64 (partitions + 1,), and behind it the rows as they lie in
memory, little-endian. Nothing in it is ever executed. The same rows give the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pretrain.data.curation.near_duplicates.shingles import Hashes, Ints
from pretrain.errors import DataError
from pretrain.files.atomic_files import write_atomically

Rows = npt.NDArray[Any]  # of a structured dtype, or uint64


def partitions_of_keys(keys: Hashes, partitions: int) -> Ints:
    """Return the partition of each key: equal ranges of the upper 32 bits."""
    return ((keys >> np.uint64(32)) * np.uint64(partitions) >> np.uint64(32)).astype(np.int64)


def write_rows(path: Path, rows: Rows, partition_of_row: Ints, partitions: int) -> None:
    """Write rows (n,), sorted by partition; within a partition they keep their order."""
    order = np.argsort(partition_of_row, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(partition_of_row, minlength=partitions))]).astype(np.int64)
    head = io.BytesIO()
    np.save(head, offsets, allow_pickle=False)
    write_atomically(path, head.getvalue() + rows[order].astype(rows.dtype.newbyteorder("<")).tobytes())


def map_partition(path: Path, partition: int, dtype: npt.DTypeLike) -> Rows:
    """Return the rows of one partition of one file, read when they are looked at.

    Raises DataError if the file is not whole.
    """
    kind = np.dtype(dtype).newbyteorder("<")
    try:
        with path.open("rb") as file:
            offsets = np.load(file, allow_pickle=False)
            start = file.tell()
            size = file.seek(0, io.SEEK_END)
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} is damaged: {error}. Delete it, and the stage that wrote it runs again.") from error
    if offsets.ndim != 1 or offsets.dtype != np.int64 or size != start + int(offsets[-1]) * kind.itemsize:
        raise DataError(f"{path} is cut off or of another kind. Delete it, and the stage that wrote it runs again.")
    first, last = (int(offset) for offset in offsets[partition : partition + 2])
    if first == last:
        return np.empty(0, kind)
    return np.memmap(path, kind, "r", start + first * kind.itemsize, (last - first,))


def read_partition(paths: Sequence[Path], partition: int, dtype: npt.DTypeLike) -> Rows:
    """Return the rows of one partition of all files, in the order of the files."""
    return concatenated((map_partition(path, partition, dtype) for path in paths), dtype)


def concatenated(parts: Iterable[Rows], dtype: npt.DTypeLike) -> Rows:
    """Return the rows of all parts in one array, of no parts too."""
    return np.concatenate([np.empty(0, np.dtype(dtype).newbyteorder("<")), *parts])
