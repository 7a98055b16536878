"""The plan of packed rows: the pieces of documents in each row of a fixed length."""

import errno
import hashlib
import json
import logging
import os
from bisect import bisect_left, insort
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pretrain.data.config import Packing
from pretrain.data.token_store.format import map_array, read_json
from pretrain.data.token_store.store import Store
from pretrain.errors import DataError, printable
from pretrain.files.atomic_files import write_atomically
from pretrain.files.records import Count, check_seal, read_record, sealed

PLAN_VERSION = 1  # of what the packers return; another version makes other rows, so a cached plan of it is not used
ARRAYS = {"row_ends": "<i8", "documents": "<i8", "offsets": "<i8", "lengths": "<i4"}

log = logging.getLogger(__name__)

Array = npt.NDArray[np.integer]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _PlanRecord:
    version: int
    key: str
    row_length: int
    rows: Count
    pieces: Count
    sha256: dict[str, str]


@dataclass(frozen=True)
class Plan:
    """Rows as pieces of documents: row i holds the pieces from row_ends[i - 1] up to row_ends[i].

    Rows are in no particular order; within a row, pieces are in the order of their documents.
    """

    row_length: int  # tokens; a row with fewer is padded by its reader
    row_ends: npt.NDArray[np.int64]  # (rows,)
    documents: npt.NDArray[np.int64]  # (pieces,) the document's index in the store
    offsets: npt.NDArray[np.int64]  # (pieces,) first token within the document
    lengths: npt.NDArray[np.int32]  # (pieces,) tokens

    def __len__(self) -> int:
        return len(self.row_ends)

    def pieces(self, rows: Array) -> tuple[Ints, Ints, Ints, npt.NDArray[np.int32]]:
        """Return the pieces of each row: counts, then documents, offsets and lengths, row after row."""
        ends = self.row_ends[rows]
        counts = ends - self.row_ends[rows - 1] * (rows > 0)
        which = np.arange(counts.sum()) + np.repeat(ends - np.cumsum(counts), counts)
        return counts, self.documents[which], self.offsets[which], self.lengths[which]

    def save(self, folder: Path, key: str) -> None:
        """Write the plan to `folder`: raw arrays, then plan.json. `key` identifies what the plan was made from.

        Every file is written atomically and depends on the plan alone, so any number of processes may do it at once.
        """
        for path in (folder, folder.parent):
            if path.is_symlink():
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        folder.mkdir(parents=True, exist_ok=True)
        hashes = {}
        for name, dtype in ARRAYS.items():
            data = getattr(self, name).astype(dtype).tobytes()
            write_atomically(folder / f"{name}.bin", data)
            hashes[name] = hashlib.sha256(data).hexdigest()
        metadata = {"version": PLAN_VERSION, "key": key, "row_length": self.row_length, "rows": len(self)}
        content = json.dumps(sealed({**metadata, "pieces": len(self.documents), "sha256": hashes}), indent=1)
        write_atomically(folder / "plan.json", content.encode())

    @staticmethod
    def load(folder: Path, key: str) -> "Plan":
        """Return a saved plan, as read-only memory maps.

        DataError when it is incomplete, damaged, from another version, or was not made from `key`.
        """
        path = folder / "plan.json"
        if not path.is_file():
            raise DataError(f"{folder} holds no plan: it has no plan.json.")
        metadata = read_json(path)
        try:
            record = read_record(_PlanRecord, metadata, str(path))
            check_seal(metadata, str(path))
        except ValueError as error:
            raise DataError(f"{error}.") from None
        if (record.version, record.key) != (PLAN_VERSION, key):
            raise DataError(
                f"{path} is a plan of version {record.version} for {record.key!a}, but version {PLAN_VERSION} "
                f"for {key!a} is needed."
            )
        arrays: dict[str, npt.NDArray[Any]] = {}
        for name, dtype in ARRAYS.items():
            count = record.rows if name == "row_ends" else record.pieces
            arrays[name] = _load_array(folder / f"{name}.bin", dtype, count, record.sha256.get(name))
        plan = Plan(record.row_length, **arrays)
        _check_plan(plan, path)
        return plan


def plan_rows(store: Store, packing: Packing, row_length: int, cache: Path | None = None) -> Plan:
    """Return the plan of a store's rows, from the folder `cache` if an earlier run left it there, else made and kept.

    Documents without a target (`documents_without_target`) are in none of them. A cached plan that is damaged costs
    only the time to make it again, and so does a cache that cannot be written to; a warning in the log says so.
    """
    pack = {Packing.best_fit: best_fit, Packing.concat: concat, Packing.whole: whole}[packing]
    excluded = documents_without_target(store, row_length)
    lengths = store.document_lengths() if excluded is None else np.where(excluded, 0, store.document_lengths())
    if cache is None:
        return pack(lengths, row_length)
    kind = packing.value if excluded is None else f"{packing.value}-with-targets"  # another plan than of all documents
    folder = cache / f"{kind}-{row_length}-{store.fingerprint[:16]}"
    key = f"{kind} {row_length} {store.fingerprint}"
    if (folder / "plan.json").exists():  # written last: without it another process may be writing the others
        try:
            return Plan.load(folder, key)
        except (DataError, OSError) as error:
            log.warning("A cached plan of rows cannot be used and is made again: %s", printable(error, one_line=True))
    plan = pack(lengths, row_length)
    try:
        plan.save(folder, key)
    except OSError as error:
        line = (
            f"The plan of rows cannot be kept in {cache} ({error.strerror}), so each process that needs it makes it "
            "again. It is kept where paths.cache_dir can be written to and has room."
        )
        log.warning("%s", printable(line, one_line=True))
    return plan


def documents_without_target(store: Store, row_length: int) -> npt.NDArray[np.bool_] | None:
    """Return which documents of a store (documents,) have nothing to predict in their rows; None where all have.

    They are pairs whose prompt fills a row, so that no token of the response is ever a target.
    """
    if store.annotations is None:
        return None
    found = store.annotations.without_target(store.document_lengths(), row_length)
    return found if found.any() else None


def concat(lengths: Array, row_length: int) -> Plan:
    """Return the plan that concatenates documents and cuts every `row_length` tokens.

    `lengths` are the tokens of each document. The last row may be shorter.
    """
    _check_row_length(row_length)
    ends = np.cumsum(lengths, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.arange(0, total, row_length)
    starts = np.sort(np.concatenate([cuts, ends - lengths]), kind="stable")  # two sorted runs, merged in one pass
    starts = starts[np.diff(starts, append=total) > 0]  # once each; and an empty document has no piece
    documents = np.searchsorted(ends, starts, side="right")
    offsets = starts - (ends - lengths)[documents]
    row_ends = np.searchsorted(starts, np.append(cuts[1:], total)[: len(cuts)])
    sizes = np.diff(starts, append=total).astype(np.int32)
    return Plan(row_length, row_ends.astype(np.int64), documents.astype(np.int64), offsets, sizes)


def best_fit(lengths: Array, row_length: int) -> Plan:
    """Return the plan that cuts no document that fits a row, by best-fit decreasing; deterministic.

    `lengths` are the tokens of each document. A longer document fills rows of its own first; what remains of it is
    packed like a short one. Source: Ding et al. 2024, https://arxiv.org/abs/2404.10830, section 3.
    """
    _check_row_length(row_length)
    lengths = np.asarray(lengths, np.int64)
    full, rest = np.divmod(lengths, row_length)
    parts = np.flatnonzero(rest)  # documents with something to pack
    sizes = rest[parts].astype(np.uint16 if row_length <= 65_536 else np.int64)  # 16 bits: sorted four times as fast
    # Largest first, and documents of one length in their order.
    by_size = parts[np.argsort(sizes.max(initial=0) - sizes, kind="stable")]
    row_of, rows = _pack(np.bincount(sizes, minlength=1), row_length)
    keys = np.sort(row_of * max(1, len(lengths)) + by_size)  # by row, then by document: faster than sorting by two keys
    row_of, packed = np.divmod(keys, max(1, len(lengths)))
    cut = np.repeat(np.arange(len(lengths)), full)
    cut_offsets = (np.arange(len(cut)) - np.repeat(np.cumsum(full) - full, full)) * row_length
    return Plan(
        row_length=row_length,
        row_ends=np.concatenate(
            [np.cumsum(np.bincount(row_of, minlength=rows)), len(packed) + 1 + np.arange(len(cut))]
        ),
        documents=np.concatenate([packed, cut]),
        offsets=np.concatenate([full[packed] * row_length, cut_offsets]),
        lengths=np.concatenate([rest[packed], np.full(len(cut), row_length)]).astype(np.int32),
    )


def whole(lengths: Array, row_length: int) -> Plan:
    """Return the plan that keeps each document in one piece, by best-fit decreasing; deterministic.

    `lengths` are the tokens of each document. What a longer one has beyond `row_length` tokens is left out.
    """
    _check_row_length(row_length)
    return best_fit(np.minimum(lengths, row_length), row_length)


def _pack(histogram: Ints, capacity: int) -> tuple[Ints, int]:
    """Return the row of every item, largest items first, and how many rows there are.

    `histogram[n]` counts the items of n tokens. Items of one length, and rows with the same room, are alike, so
    whole groups of them move at once: a row with the least room that suffices takes as many as fit, as it would
    one by one, for what is left of its room is again the least that suffices.
    """
    groups: defaultdict[int, list[Ints]] = defaultdict(list)  # room -> rows that have it left
    rooms: list[int] = []  # the keys of `groups`, sorted
    assigned: list[Ints] = [np.empty(0, np.int64)]
    rows = 0
    for length in np.flatnonzero(histogram)[::-1].tolist():
        left = int(histogram[length])
        while left:
            index = bisect_left(rooms, length)
            if index < len(rooms):
                room = rooms.pop(index)
                group = np.concatenate(groups.pop(room))
            else:
                room = capacity
                group = np.arange(rows, rows - left // -(room // length))
                rows += len(group)
            fit = room // length
            used = min(len(group), -(left // -fit))
            taken = min(left, used * fit)
            assigned.append(np.repeat(group[:used], fit)[:taken])
            left -= taken
            last = taken - (used - 1) * fit  # items in the last row that is used
            for part, space in (
                (group[: used - 1], room - fit * length),
                (group[used - 1 : used], room - last * length),
                (group[used:], room),
            ):
                if len(part) and space:
                    if space not in groups:
                        insort(rooms, space)
                    groups[space].append(part)
    return np.concatenate(assigned), rows


def _check_row_length(row_length: int) -> None:
    if not 1 <= row_length < 2**31:
        raise DataError(f"Rows of {row_length} tokens are not possible: a row holds 1 to 2,147,483,647.")


def _load_array(path: Path, dtype: str, count: int, sha256: object) -> npt.NDArray[Any]:
    """Return an array of a plan; DataError if its size or hash is wrong."""
    expected = count * np.dtype(dtype).itemsize
    found = path.stat().st_size if path.is_file() else 0
    if found != expected:
        raise DataError(f"{path} has {found} bytes, but by its plan.json it has {expected}.")
    array = map_array(path, dtype, count)
    if hashlib.sha256(array.data).hexdigest() != sha256:
        raise DataError(f"{path} is not as it was written: its sha256 is not the one in plan.json.")
    return array


def _check_plan(plan: Plan, path: Path) -> None:
    """Check that rows and pieces make sense; whether they suit a store shows when its tokens are read."""
    counts = np.diff(plan.row_ends, prepend=0)
    sound = 1 <= plan.row_length < 2**31 and counts.sum() == len(plan.documents) and bool((counts > 0).all())
    sound = sound and all(int(array.min(initial=0)) >= 0 for array in (plan.documents, plan.offsets))
    sound = sound and int(plan.lengths.min(initial=1)) > 0
    if sound and len(plan):
        row_tokens = np.add.reduceat(plan.lengths.astype(np.int64), plan.row_ends - counts)
        sound = int(row_tokens.max()) <= plan.row_length
    if not sound:
        raise DataError(f"{path} describes rows that cannot be: a row has 1 piece or more and at most its length.")
