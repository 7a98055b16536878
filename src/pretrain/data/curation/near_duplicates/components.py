"""Connected components of the documents that share bands: they divide the work of verification, and remove nothing.

Memory: 16 B for each document that has an edge, and the edges of one partition at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from pretrain.data.curation.near_duplicates.buckets import Edges
from pretrain.data.curation.near_duplicates.shingles import Hashes, Ints
from pretrain.data.curation.near_duplicates.shuffle_files import Rows

COMPONENT = np.dtype([("document", "<u8"), ("component", "<u8"), ("range", "<u4")])  # sorted by document


def connected_components(partitions: Callable[[], Iterable[Edges]]) -> tuple[Hashes, Hashes]:
    """Return the documents with an edge, sorted, and the smallest document of the component of each: uint64 (n,).

    `partitions` gives the edges anew for each pass. A pass hooks the larger of the roots of an edge's ends to the
    smaller and then halves all paths until they have length one, so a few passes are enough, and the result depends
    on no order (Shiloach and Vishkin 1982, "An O(log n) parallel connectivity algorithm").
    """
    documents = np.empty(0, np.uint64)
    for edges in partitions():
        documents = np.union1d(documents, np.concatenate([edges.first, edges.second]))
    roots = np.arange(len(documents), dtype=np.int64)
    changed = True
    while changed:
        changed = False
        for edges in partitions():
            changed |= _hook(roots, np.searchsorted(documents, edges.first), np.searchsorted(documents, edges.second))
    return documents, documents[roots]


def _hook(roots: Ints, first: Ints, second: Ints) -> bool:
    """Connect the roots of each edge's ends in place; return whether any root changed."""
    one, other = roots[first], roots[second]
    differ = one != other
    if not differ.any():
        return False
    one, other = one[differ], other[differ]
    np.minimum.at(roots, np.maximum(one, other), np.minimum(one, other))
    while True:
        shorter = roots[roots]
        if np.array_equal(shorter, roots):
            return True
        roots[:] = shorter


def components_in_ranges(documents: Hashes, components: Hashes, members: int) -> Rows:
    """Return rows of `COMPONENT`: whole components share a range until it has `members` documents or more."""
    labels, inverse, sizes = np.unique(components, return_inverse=True, return_counts=True)
    before = np.concatenate([[0], np.cumsum(sizes)[:-1]]) if len(labels) else np.empty(0, np.int64)
    _, ranges = np.unique(before // members, return_inverse=True)
    rows = np.empty(len(documents), COMPONENT)
    rows["document"], rows["component"], rows["range"] = documents, components, ranges[inverse]
    return rows


def number_of_ranges(components: Rows) -> int:
    """Return how many ranges there are; 0 without components."""
    return int(components["range"].max()) + 1 if len(components) else 0


def find_components(components: Rows, documents: Hashes) -> tuple[Rows, Ints]:
    """Return the rows of those documents that have one, and the positions of these in `documents`."""
    positions = np.searchsorted(components["document"], documents)
    inside = np.flatnonzero(positions < len(components))
    inside = inside[components["document"][positions[inside]] == documents[inside]]
    return components[positions[inside]], inside
