"""Packing: every token once, no avoidable split, as few rows as plain best-fit, and a safe cache."""

import errno
import json
import logging
import os
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from pretrain.data.config import Packing
from pretrain.data.packing import PLAN_VERSION, Plan, best_fit, concat, plan_rows
from pretrain.data.token_store.format import Vocabulary
from pretrain.data.token_store.store import Store, StoreWriter
from pretrain.errors import DataError
from pretrain.files.records import SEAL

lengths_of_documents = st.lists(st.integers(0, 40), max_size=60)


def rows_of(plan: Plan) -> list[list[tuple[int, int, int]]]:
    """Return each row as (document, offset, length) of its pieces."""
    pieces = list(zip(plan.documents.tolist(), plan.offsets.tolist(), plan.lengths.tolist(), strict=True))
    starts = [0, *plan.row_ends.tolist()]
    return [pieces[first:end] for first, end in pairwise(starts)]


def rows_one_by_one(sizes: list[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing as it is usually told: each item, largest first, into the fullest row that has room."""
    rows: list[list[int]] = []
    for size in sorted(sizes, reverse=True):
        fitting = [row for row in rows if sum(row) + size <= capacity]
        if fitting:
            max(fitting, key=sum).append(size)
        else:
            rows.append([size])
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("pack", [best_fit, concat])
@given(lengths=lengths_of_documents, row_length=st.integers(1, 17))
@settings(max_examples=150, deadline=None)
def test_every_token_is_in_exactly_one_row(pack, lengths: list[int], row_length: int) -> None:
    plan = pack(np.array(lengths, np.int64), row_length)
    rows = rows_of(plan)
    assert len(plan) == len(rows)
    assert all(row and sum(length for *_, length in row) <= row_length for row in rows)
    seen = [(document, offset + i) for row in rows for document, offset, length in row for i in range(length)]
    assert sorted(seen) == [(document, i) for document, length in enumerate(lengths) for i in range(length)]
    assert all(row == sorted(row) for row in rows)
    assert (plan.row_ends.dtype, plan.documents.dtype, plan.offsets.dtype) == (np.int64,) * 3
    assert plan.lengths.dtype == np.int32


@pytest.mark.slow
@given(lengths=lengths_of_documents, row_length=st.integers(1, 50))
@settings(max_examples=300, deadline=None)
def test_whole_groups_pack_like_one_document_at_a_time(lengths: list[int], row_length: int) -> None:
    plan = best_fit(np.array(lengths, np.int64), row_length)
    expected = rows_one_by_one([length % row_length for length in lengths if length % row_length], row_length)
    expected += [[row_length]] * sum(length // row_length for length in lengths)
    # Rows that are equally full may be taken in either order, so compare how full the rows are, not by what.
    found = [sum(length for *_, length in row) for row in rows_of(plan)]
    assert sorted(found) == sorted(map(sum, expected))


def test_best_fit_cuts_only_what_is_longer_than_a_row() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, 2000)
    plan = best_fit(lengths, 128)
    cut = np.flatnonzero(np.bincount(plan.documents) > 1)
    assert_array_equal(cut, np.flatnonzero(lengths > 128))
    assert lengths.sum() / (len(plan) * 128) > 0.99


def test_concat_fills_every_row_but_the_last() -> None:
    plan = concat(np.array([5, 0, 3, 4]), 4)
    assert rows_of(plan) == [[(0, 0, 4)], [(0, 4, 1), (2, 0, 3)], [(3, 0, 4)]]
    assert rows_of(concat(np.array([5]), 4)) == [[(0, 0, 4)], [(0, 4, 1)]]


def test_plans_never_change_silently() -> None:
    """A checkpoint counts rows of this plan: whoever changes it must raise PLAN_VERSION."""
    assert PLAN_VERSION == 1
    plan = best_fit(np.array([5, 3, 8, 1, 17, 2, 4, 4, 9, 30]), 8)
    assert_array_equal(plan.row_ends, [2, 4, 6, 9, 10, 11, 12, 13, 14, 15, 16])
    assert_array_equal(plan.documents, [5, 9, 0, 1, 6, 7, 3, 4, 8, 2, 4, 4, 8, 9, 9, 9])
    assert_array_equal(plan.offsets, [0, 24, 0, 0, 0, 0, 0, 16, 8, 0, 0, 8, 0, 0, 8, 16])
    assert_array_equal(plan.lengths, [2, 6, 5, 3, 4, 4, 1, 1, 1, 8, 8, 8, 8, 8, 8, 8])


def test_a_million_documents_pack_in_a_moment() -> None:
    lengths = np.random.default_rng(0).lognormal(np.log(450), 1.0, 1_000_000).astype(np.int64) + 2
    started = time.process_time()
    plan = best_fit(lengths, 2048)
    assert time.process_time() - started < 4.0  # 0.3 s on an idle core
    assert lengths.sum() / (len(plan) * 2048) > 0.999


def test_pieces_gathers_any_rows_in_any_order() -> None:
    plan = best_fit(np.random.default_rng(1).integers(1, 60, 300), 32)
    rows = np.array([len(plan) - 1, 0, 3, 3])
    counts, documents, offsets, lengths = plan.pieces(rows)
    expected = [rows_of(plan)[row] for row in rows]
    assert_array_equal(counts, [len(row) for row in expected])
    pieces = list(zip(documents.tolist(), offsets.tolist(), lengths.tolist(), strict=True))
    assert pieces == [piece for row in expected for piece in row]


@pytest.mark.parametrize("row_length", [0, 2**31])
def test_impossible_row_lengths_are_refused(row_length: int) -> None:
    for pack in (best_fit, concat):
        with pytest.raises(DataError, match=f"A row of {row_length} tokens is not possible"):
            pack(np.array([1]), row_length)


@pytest.mark.parametrize("lengths", [[], [5, 3, 40, 7, 7]])
def test_a_saved_plan_comes_back_equal(tmp_path: Path, lengths: list[int]) -> None:
    plan = best_fit(np.array(lengths, np.int64), 16)
    plan.save(tmp_path / "plan", "key")
    plan.save(tmp_path / "plan", "key")  # as a second process would
    assert sorted(path.name for path in (tmp_path / "plan").iterdir()) == [
        "documents.bin", "lengths.bin", "offsets.bin", "plan.json", "row_ends.bin",
    ]  # fmt: skip
    found = Plan.load(tmp_path / "plan", "key")
    assert rows_of(found) == rows_of(plan)
    assert found.row_length == 16


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "plan"
    best_fit(np.array([5, 3, 40, 7, 7]), 16).save(folder, "key")
    return folder


def test_a_damaged_plan_is_refused(saved: Path) -> None:
    path = saved / "offsets.bin"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(DataError, match=r"offsets\.bin has \d+ bytes, but its plan\.json expects \d+"):
        Plan.load(saved, "key")
    path.write_bytes(data[:-1] + b"\x01")
    with pytest.raises(DataError, match=r"offsets\.bin is damaged: its sha256"):
        Plan.load(saved, "key")
    path.unlink()
    with pytest.raises(DataError, match=r"offsets\.bin has 0 bytes"):
        Plan.load(saved, "key")
    (saved / "plan.json").unlink()
    with pytest.raises(DataError, match=r"has no plan: plan\.json is missing"):
        Plan.load(saved, "key")


def test_a_plan_of_something_else_is_refused(saved: Path) -> None:
    with pytest.raises(DataError, match="version 1 and key 'key', but version 1 and key 'other' are needed"):
        Plan.load(saved, "other")
    path = saved / "plan.json"
    metadata = json.loads(path.read_text())
    path.write_text(json.dumps({**metadata, "row_length": metadata["row_length"] + 1}))
    with pytest.raises(DataError, match=r"plan\.json is not as it was written: its record_sha256 is that of other"):
        Plan.load(saved, "key")
    del metadata[SEAL]
    path.write_text(json.dumps(metadata))  # as earlier versions wrote it
    assert Plan.load(saved, "key").row_length == metadata["row_length"]
    path.write_text(json.dumps({**metadata, "version": 2}))
    with pytest.raises(DataError, match="has version 2 and key"):
        Plan.load(saved, "key")
    for wrong in ([], {**metadata, "rows": "3"}, {**metadata, "sha256": None}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(
            DataError, match=r"plan\.json (is \[\], which is no object|has (rows|sha256)=.*, which is no )"
        ):
            Plan.load(saved, "key")
    path.write_text("{")
    with pytest.raises(DataError, match=r"plan\.json is not valid JSON"):
        Plan.load(saved, "key")


@pytest.mark.parametrize(
    ("row_ends", "offsets", "lengths"),
    [
        ([2], [0, 0], [4, 5]),
        ([1], [0, 0], [1, 1]),
        ([2, 2], [0, 0], [1, 1]),
        ([2], [0, -1], [1, 1]),
        ([2], [0, 0], [9, 0]),
    ],
)
def test_a_plan_that_cannot_be_is_refused(tmp_path: Path, row_ends: list[int], offsets: list[int], lengths: list[int]):
    documents = np.array([0, 1])
    Plan(8, np.array(row_ends), documents, np.array(offsets), np.array(lengths, np.int32)).save(tmp_path, "key")
    with pytest.raises(DataError, match="is inconsistent: a row has 1 piece or more"):
        Plan.load(tmp_path, "key")


def small_store(folder: Path) -> Store:
    writer = StoreWriter(folder, Vocabulary(10, "t", bos_id=1, eos_id=2), shard_tokens=50)
    for size in (5, 30, 12, 7):
        writer.add(np.array([1, *[3] * size, 2]), text_bytes=size)
    return writer.finish({})


@pytest.mark.parametrize("packing", list(Packing))
def test_a_cached_plan_is_used_and_a_damaged_one_made_again(
    tmp_path: Path, packing: Packing, caplog: pytest.LogCaptureFixture
) -> None:
    store = small_store(tmp_path / "store")
    expected = rows_of(plan_rows(store, packing, 16))
    cache = tmp_path / "plans"
    assert rows_of(plan_rows(store, packing, 16, cache)) == expected
    (folder,) = cache.iterdir()
    before = (folder / "plan.json").stat().st_mtime_ns
    assert rows_of(plan_rows(store, packing, 16, cache)) == expected
    assert (folder / "plan.json").stat().st_mtime_ns == before
    assert not caplog.records
    (folder / "row_ends.bin").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert rows_of(plan_rows(store, packing, 16, cache)) == expected
    assert "cannot be used and is computed again" in caplog.text
    assert rows_of(Plan.load(folder, f"{packing.value} 16 {store.fingerprint}")) == expected


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_a_plan_that_cannot_be_kept_is_used_all_the_same(
    tmp_path: Path, number: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = small_store(tmp_path / "store")

    def refuse(path: Path, data: bytes) -> None:
        if path.name == "lengths.bin":
            raise OSError(number, os.strerror(number), str(path))
        path.write_bytes(data)

    monkeypatch.setattr("pretrain.data.packing.write_atomically", refuse)
    expected = rows_of(plan_rows(store, Packing.best_fit, 16))
    for _ in range(2):
        caplog.clear()
        assert rows_of(plan_rows(store, Packing.best_fit, 16, tmp_path / "plans")) == expected
        assert f"cannot be saved in {tmp_path / 'plans'} ({os.strerror(number)})" in caplog.text
    monkeypatch.undo()
    assert rows_of(plan_rows(store, Packing.best_fit, 16, tmp_path / "plans")) == expected
    assert (next((tmp_path / "plans").iterdir()) / "plan.json").exists()


def test_a_plan_is_not_written_through_a_link(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = small_store(tmp_path / "store")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "plans").symlink_to(tmp_path / "elsewhere")
    assert len(plan_rows(store, Packing.best_fit, 16, tmp_path / "plans"))
    assert "Too many levels of symbolic links" in caplog.text
    assert not list((tmp_path / "elsewhere").iterdir())
