"""Files of rows by partition: what is read is what was written, and writing takes no memory of its own."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from pretrain.data.curation.near_duplicates.buckets import BAND
from pretrain.data.curation.near_duplicates.shuffle_files import (
    BLOCK_ROWS,
    LARGE_PARTITION,
    SMALL_PARTITION,
    map_partition,
    number_of_partitions,
    read_partition,
    write_rows,
    write_sets,
)


def bands(count: int) -> np.ndarray:
    rows = np.zeros(count, BAND)
    rows["key"], rows["document"] = np.random.default_rng(0).integers(0, 1 << 60, count), np.arange(count)
    return rows


def test_rows_of_a_partition_keep_their_order(tmp_path: Path) -> None:
    rows = bands(2 * BLOCK_ROWS + 5)
    of_row = (rows["document"] % 3).astype(np.int64)
    write_rows(tmp_path / "rows", rows, of_row, 4)
    for partition in range(4):
        assert np.array_equal(map_partition(tmp_path / "rows", partition, BAND), rows[of_row == partition])
    write_rows(tmp_path / "one", rows, np.zeros(len(rows), np.int64), 1)
    assert np.array_equal(read_partition([tmp_path / "one"], 0, BAND), rows)


def test_sets_are_written_as_their_rows_would_be(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    sets = [draw.integers(0, 1 << 60, length).astype(np.uint64) for length in (3, 0, 5, 1, 2)]
    of_set = np.array([1, 0, 0, 1, 3])
    write_sets(tmp_path / "sets", sets, of_set, 4, np.uint64)
    write_rows(tmp_path / "rows", np.concatenate(sets), np.repeat(of_set, [len(each) for each in sets]), 4)
    assert (tmp_path / "sets").read_bytes() == (tmp_path / "rows").read_bytes()
    write_sets(tmp_path / "sets", [], np.zeros(0, np.int64), 2, np.uint64)
    assert not len(map_partition(tmp_path / "sets", 1, np.uint64))


def test_writing_copies_no_more_than_a_block(tmp_path: Path) -> None:
    rows = bands(SMALL_PARTITION // BAND.itemsize)
    partitions = np.zeros(len(rows), np.int64)
    tracemalloc.start()
    try:
        write_rows(tmp_path / "rows", rows, partitions, 1)
        assert tracemalloc.get_traced_memory()[1] < rows.nbytes / 2
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("rows_bytes", "size"), [(0, 0), (10**6, 10**6), (10**9, SMALL_PARTITION), (10**13, LARGE_PARTITION)]
)
def test_partitions_have_a_bounded_size(rows_bytes: int, size: int) -> None:
    count = number_of_partitions(rows_bytes)
    assert count >= 1
    assert 0.9 * size <= rows_bytes / count <= size
