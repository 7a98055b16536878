"""Pack documents into rows of a fixed length: the plan lists the pieces of documents in each row."""

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

PLAN_VERSION = 1  # increase when a packer returns other rows, so that cached plans are not used
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

    row_length: int  # tokens; `read_rows` pads shorter rows
    row_ends: npt.NDArray[np.int64]  # (rows,)
    documents: npt.NDArray[np.int64]  # (pieces,) the document's index in the store
    offsets: npt.NDArray[np.int64]  # (pieces,) first token within the document
    lengths: npt.NDArray[np.int32]  # (pieces,) tokens

    def __len__(self) -> int:
        return len(self.row_ends)

    def pieces(self, rows: Array) -> tuple[Ints, Ints, Ints, npt.NDArray[np.int32]]:
        """Return the pieces of rows (n,): counts (n,), then documents, offsets and lengths, each (sum of counts,)."""
        ends = self.row_ends[rows]
        counts = ends - self.row_ends[rows - 1] * (rows > 0)
        pieces = np.arange(counts.sum()) + np.repeat(ends - np.cumsum(counts), counts)
        return counts, self.documents[pieces], self.offsets[pieces], self.lengths[pieces]

    def save(self, folder: Path, key: str) -> None:
        """Write the plan to `folder`: raw arrays, then plan.json. `key` identifies the inputs of the plan.

        Every file is written atomically and depends on the plan alone, so several processes may write it at once.
        Raises OSError if the folder is a symbolic link or cannot be written.
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

        Raises DataError if it is incomplete, damaged, from another version, or has another `key`.
        """
        path = folder / "plan.json"
        if not path.is_file():
            raise DataError(f"{folder} has no plan: plan.json is missing.")
        metadata = read_json(path)
        try:
            record = read_record(_PlanRecord, metadata, str(path))
            check_seal(metadata, str(path))
        except ValueError as error:
            raise DataError(f"{error}.") from None
        if (record.version, record.key) != (PLAN_VERSION, key):
            raise DataError(
                f"{path} has version {record.version} and key {record.key!a}, but version {PLAN_VERSION} "
                f"and key {key!a} are needed."
            )
        arrays: dict[str, npt.NDArray[Any]] = {}
        for name, dtype in ARRAYS.items():
            count = record.rows if name == "row_ends" else record.pieces
            arrays[name] = _load_array(folder / f"{name}.bin", dtype, count, record.sha256.get(name))
        plan = Plan(record.row_length, **arrays)
        _check_plan(plan, path)
        return plan


def plan_rows(store: Store, packing: Packing, row_length: int, cache: Path | None = None) -> Plan:
    """Return the plan of a store's rows: from the folder `cache`, or computed and saved there.

    Documents without a target (`documents_without_target`) are left out. If the cached plan is damaged or the cache
    cannot be written, a warning is logged and the plan is computed again.
    """
    pack = {Packing.best_fit: best_fit, Packing.concat: concat, Packing.whole: whole}[packing]
    excluded = documents_without_target(store, row_length)
    lengths = store.document_lengths() if excluded is None else np.where(excluded, 0, store.document_lengths())
    if cache is None:
        return pack(lengths, row_length)
    kind = (
        packing.value if excluded is None else f"{packing.value}-with-targets"
    )  # differs from the plan of all documents
    folder = cache / f"{kind}-{row_length}-{store.fingerprint[:16]}"
    key = f"{kind} {row_length} {store.fingerprint}"
    if (folder / "plan.json").exists():  # written last; without it another process may still be writing the arrays
        try:
            return Plan.load(folder, key)
        except (DataError, OSError) as error:
            log.warning(
                "The cached packing plan cannot be used and is computed again: %s", printable(error, one_line=True)
            )
    plan = pack(lengths, row_length)
    try:
        plan.save(folder, key)
    except OSError as error:
        warning = (
            f"The packing plan cannot be saved in {cache} ({error.strerror}), so each process computes it. "
            "Set paths.cache_dir to a writable folder with enough disk space."
        )
        log.warning("%s", printable(warning, one_line=True))
    return plan


def documents_without_target(store: Store, row_length: int) -> npt.NDArray[np.bool_] | None:
    """Return the mask (documents,) of documents without a target in their rows; None if every document has one.

    They are pairs whose prompt fills a row, so that no token of the response is a target.
    """
    if store.annotations is None:
        return None
    mask = store.annotations.without_target(store.document_lengths(), row_length)
    return mask if mask.any() else None


def concat(lengths: Array, row_length: int) -> Plan:
    """Return the plan that concatenates documents and cuts the result every `row_length` tokens.

    `lengths` (documents,) are in tokens. The last row may be shorter. Raises DataError for an impossible row length.
    """
    _check_row_length(row_length)
    ends = np.cumsum(lengths, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.arange(0, total, row_length)
    starts = np.sort(
        np.concatenate([cuts, ends - lengths]), kind="stable"
    )  # a stable sort merges two sorted arrays in one pass
    starts = starts[np.diff(starts, append=total) > 0]  # without duplicates; an empty document has no piece
    documents = np.searchsorted(ends, starts, side="right")
    offsets = starts - (ends - lengths)[documents]
    row_ends = np.searchsorted(starts, np.append(cuts[1:], total)[: len(cuts)])
    sizes = np.diff(starts, append=total).astype(np.int32)
    return Plan(row_length, row_ends.astype(np.int64), documents.astype(np.int64), offsets, sizes)


def best_fit(lengths: Array, row_length: int) -> Plan:
    """Return the plan of best-fit decreasing, which splits only documents longer than a row; deterministic.

    `lengths` (documents,) are in tokens. A longer document is split into full rows; its rest is packed like a short
    document. Raises DataError for an impossible row length.
    Source: Ding et al. 2024, https://arxiv.org/abs/2404.10830, section 3.
    """
    _check_row_length(row_length)
    lengths = np.asarray(lengths, np.int64)
    full, rest = np.divmod(lengths, row_length)
    packable = np.flatnonzero(rest)  # documents with a rest to pack
    sizes = rest[packable].astype(
        np.uint16 if row_length <= 65_536 else np.int64
    )  # sorting 16-bit integers is 4 times as fast
    # Largest first; documents of equal length keep their order.
    by_size = packable[np.argsort(sizes.max(initial=0) - sizes, kind="stable")]
    row_of, rows = _pack(np.bincount(sizes, minlength=1), row_length)
    keys = np.sort(
        row_of * max(1, len(lengths)) + by_size
    )  # by row, then document; one combined key sorts faster than two
    row_of, packed = np.divmod(keys, max(1, len(lengths)))
    split = np.repeat(np.arange(len(lengths)), full)  # document of each full row
    split_offsets = (np.arange(len(split)) - np.repeat(np.cumsum(full) - full, full)) * row_length
    return Plan(
        row_length=row_length,
        row_ends=np.concatenate(
            [np.cumsum(np.bincount(row_of, minlength=rows)), len(packed) + 1 + np.arange(len(split))]
        ),
        documents=np.concatenate([packed, split]),
        offsets=np.concatenate([full[packed] * row_length, split_offsets]),
        lengths=np.concatenate([rest[packed], np.full(len(split), row_length)]).astype(np.int32),
    )


def whole(lengths: Array, row_length: int) -> Plan:
    """Return the plan of best-fit decreasing over documents truncated to `row_length` tokens; deterministic.

    `lengths` (documents,) are in tokens; each document is one piece. Raises DataError for an impossible row length.
    """
    _check_row_length(row_length)
    return best_fit(np.minimum(lengths, row_length), row_length)


def _pack(histogram: Ints, capacity: int) -> tuple[Ints, int]:
    """Return the row of each item (items,), largest items first, and the number of rows.

    `histogram[n]` counts the items of n tokens. Items of equal length are interchangeable, and so are rows with equal
    free space, so groups are packed at once. The fullest row that fits an item takes as many equal items as fit: packed
    one by one they would all go there, because that row stays the fullest that fits.
    """
    groups: defaultdict[int, list[Ints]] = defaultdict(list)  # free space -> rows with it
    spaces: list[int] = []  # the keys of `groups`, sorted
    assigned: list[Ints] = [np.empty(0, np.int64)]
    rows = 0
    for length in np.flatnonzero(histogram)[::-1].tolist():
        left = int(histogram[length])
        while left:
            index = bisect_left(spaces, length)
            if index < len(spaces):
                space = spaces.pop(index)
                group = np.concatenate(groups.pop(space))
            else:
                space = capacity
                group = np.arange(rows, rows - left // -(space // length))
                rows += len(group)
            fit = space // length
            used = min(len(group), -(left // -fit))
            taken = min(left, used * fit)
            assigned.append(np.repeat(group[:used], fit)[:taken])
            left -= taken
            last = taken - (used - 1) * fit  # items in the last row that is used
            for part, remaining in (
                (group[: used - 1], space - fit * length),
                (group[used - 1 : used], space - last * length),
                (group[used:], space),
            ):
                if len(part) and remaining:
                    if remaining not in groups:
                        insort(spaces, remaining)
                    groups[remaining].append(part)
    return np.concatenate(assigned), rows


def _check_row_length(row_length: int) -> None:
    if not 1 <= row_length < 2**31:
        raise DataError(f"A row of {row_length} tokens is not possible: a row has 1 to 2,147,483,647.")


def _load_array(path: Path, dtype: str, count: int, sha256: object) -> npt.NDArray[Any]:
    """Return an array of a plan, memory-mapped; raise DataError if its size or hash is wrong."""
    expected = count * np.dtype(dtype).itemsize
    size = path.stat().st_size if path.is_file() else 0
    if size != expected:
        raise DataError(f"{path} has {size} bytes, but its plan.json expects {expected}.")
    array = map_array(path, dtype, count)
    if hashlib.sha256(array.data).hexdigest() != sha256:
        raise DataError(f"{path} is damaged: its sha256 is not the one in plan.json.")
    return array


def _check_plan(plan: Plan, path: Path) -> None:
    """Raise DataError if rows and pieces are inconsistent; `read_rows` checks that they fit the store."""
    counts = np.diff(plan.row_ends, prepend=0)
    valid = 1 <= plan.row_length < 2**31 and counts.sum() == len(plan.documents) and bool((counts > 0).all())
    valid = valid and all(int(array.min(initial=0)) >= 0 for array in (plan.documents, plan.offsets))
    valid = valid and int(plan.lengths.min(initial=1)) > 0
    if valid and len(plan):
        row_tokens = np.add.reduceat(plan.lengths.astype(np.int64), plan.row_ends - counts)
        valid = int(row_tokens.max()) <= plan.row_length
    if not valid:
        raise DataError(f"{path} is inconsistent: a row has 1 piece or more, and at most `row_length` tokens.")
