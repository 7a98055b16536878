"""Buckets: the documents that share a band, and what they connect."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pretrain.data.curation.near_duplicates.shingles import Hashes, Ints
from pretrain.data.curation.near_duplicates.shuffle_files import Rows

BAND = np.dtype([("key", "<u8"), ("document", "<u8")])  # 16 B; a document has one row per band


def band_rows(keys: Hashes, documents: Hashes) -> Rows:
    """Return a row of `BAND` for each band of each document, of keys (documents, bands)."""
    rows = np.empty(keys.size, BAND)
    rows["key"] = keys.ravel()
    rows["document"] = np.repeat(documents, keys.shape[1])
    return rows


def shared_bands(rows: Rows) -> Rows:
    """Return the rows whose key another document has too, sorted by key and document.

    The result depends on the rows alone, not on their order.
    """
    rows = np.asarray(rows)[np.lexsort((rows["document"], rows["key"]))]
    same = rows["key"][1:] == rows["key"][:-1]
    shared = np.zeros(len(rows), bool)
    shared[1:] |= same
    shared[:-1] |= same
    return rows[shared]


def bucket_starts(rows: Rows) -> Ints:
    """Return where each bucket of rows sorted by key begins, and the number of rows: int64 (buckets + 1,)."""
    if not len(rows):
        return np.zeros(1, np.int64)
    changes = np.flatnonzero(rows["key"][1:] != rows["key"][:-1]) + 1
    return np.concatenate([[0], changes, [len(rows)]]).astype(np.int64)


@dataclass(frozen=True)
class Edges:
    """Pairs of documents that share a band: a star from the first of each bucket. uint64 (edges,)."""

    first: Hashes
    second: Hashes


def star_edges(rows: Rows) -> Edges:
    """Return the edges of rows of `shared_bands`: they connect what the buckets connect, with fewer pairs."""
    starts = bucket_starts(rows)
    first = np.repeat(rows["document"][starts[:-1]], np.diff(starts))
    others = first != rows["document"]
    return Edges(first[others], rows["document"][others])


def shares_bucket_with(rows: Rows, marked: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return for each row whether a marked row is in its bucket; rows sorted by key, `marked` (rows,)."""
    starts = bucket_starts(rows)
    if len(starts) == 1:
        return np.zeros(0, bool)
    return np.repeat(np.logical_or.reduceat(marked, starts[:-1]), np.diff(starts))
