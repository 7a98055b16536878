"""The stages over files: each function is one task, reads what earlier tasks wrote, and writes its files once.

bands       a unit        band keys of its documents, by band partition
buckets     a partition   the rows of keys that two documents have
components  one task      the component and the range of each document with an edge
members     a unit        order, id and shingle set of its documents with an edge, by range
routed      a partition   the rows of its buckets, by range
decisions   a range       what is kept and what is removed, with its twin

A range is a number of whole components. No result depends on the number of partitions and ranges, nor on the order in
which a unit's documents or the units come; document numbers only have to be unique.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.data.curation.near_duplicates.buckets import BAND, Edges, band_rows, shared_bands, star_edges
from pretrain.data.curation.near_duplicates.components import (
    COMPONENT,
    components_in_ranges,
    connected_components,
    find_components,
    number_of_ranges,
)
from pretrain.data.curation.near_duplicates.config import NearDuplicatesConfig
from pretrain.data.curation.near_duplicates.minhash import MinHash
from pretrain.data.curation.near_duplicates.shingles import Hashes, Shingler
from pretrain.data.curation.near_duplicates.shuffle_files import (
    Rows,
    concatenated,
    map_partition,
    partitions_of_keys,
    read_partition,
    write_rows,
    write_sets,
)
from pretrain.data.curation.near_duplicates.verification import DECISION, MEMBER, decide

MEMBERS_OF_RANGE = 50_000  # their bands are 16 MB; a larger component is a range of its own


@dataclass(frozen=True)
class Batch:
    """Documents of a unit, any number of them at once."""

    members: Rows  # of dtype MEMBER, without component and shingles
    texts: Sequence[str]


@dataclass(frozen=True)
class MemberFiles:
    """Where a unit's members and their shingle sets are."""

    members: Path
    shingles: Path


def shuffle_bands(keys: Hashes, documents: Hashes, output: Path, partitions: int) -> None:
    """Write the band keys (documents, bands) of a unit for `partitions` partitions.

    Documents are all that may be removed or remove others: those that no rule removed, and the base corpus's.
    """
    rows = band_rows(keys, documents)
    write_rows(output, rows, partitions_of_keys(rows["key"], partitions), partitions)


def find_buckets(bands: Sequence[Path], partition: int, output: Path) -> None:
    """Write the buckets of a partition with two documents or more."""
    _write_all(output, shared_bands(read_partition(bands, partition, BAND)))


def write_components(buckets: Sequence[Path], output: Path, members: int = MEMBERS_OF_RANGE) -> int:
    """Write the component and range of each document with an edge; return the number of ranges."""

    def edges() -> Iterator[Edges]:
        for path in buckets:
            yield star_edges(_read_all(path, BAND))

    found = components_in_ranges(*connected_components(edges), members)
    _write_all(output, found)
    return number_of_ranges(found)


def shuffle_members(batches: Iterable[Batch], components: Path, words: int, output: MemberFiles) -> None:
    """Write members and shingle sets of those documents of a unit that have an edge."""
    known = _read_all(components, COMPONENT)
    shingler = Shingler(words)
    members: list[Rows] = []
    sets: list[Hashes] = []
    ranges = []
    for batch in batches:
        rows, positions = find_components(known, batch.members["document"])
        chosen = batch.members[positions].copy()
        found = [shingler.shingle_set(batch.texts[position]) for position in positions]
        chosen["component"] = rows["component"]
        chosen["shingles"] = [len(each) for each in found]
        members.append(chosen)
        sets += found
        ranges.append(rows["range"].astype(np.int64))
    count = number_of_ranges(known)
    all_ranges = np.concatenate([np.empty(0, np.int64), *ranges])
    write_rows(output.members, concatenated(members, MEMBER), all_ranges, count)
    write_sets(output.shingles, sets, all_ranges, count, np.uint64)


def shuffle_buckets(buckets: Path, components: Path, output: Path) -> None:
    """Write the buckets of a partition for the ranges."""
    known = _read_all(components, COMPONENT)
    rows = _read_all(buckets, BAND)
    found, _ = find_components(known, rows["document"])  # all of them have a component
    write_rows(output, rows, found["range"].astype(np.int64), number_of_ranges(known))


def decide_range(
    members: Sequence[MemberFiles], buckets: Sequence[Path], index: int, config: NearDuplicatesConfig, output: Path
) -> None:
    """Write the decisions on the components of a range, sorted by document.

    Shingle sets are read as they are compared: in memory are the members and their bands.
    """
    sets = ShingleSets([(map_partition(each.members, index, MEMBER), each.shingles) for each in members], index)
    rows = read_partition([each.members for each in members], index, MEMBER)
    bands = read_buckets(buckets, index)
    _write_all(output, decide(rows, bands, sets if config.verify else None, config.similarity))


class ShingleSets:
    """The shingle sets of a range's members by their position, read from the files of the units.

    Each is read when it is asked for: mapped files would count as memory of the process, as large as all sets.
    """

    def __init__(self, units: Sequence[tuple[Rows, Path]], index: int) -> None:
        mapped = ((path, map_partition(path, index, np.uint64)) for _, path in units)
        self._files = [(path, int(getattr(rows, "offset", 0))) for path, rows in mapped]  # an empty one has no offset
        counts = [members["shingles"].astype(np.int64) for members, _ in units]
        self._file = np.repeat(np.arange(len(counts)), [len(each) for each in counts])
        ends = [np.cumsum(each) for each in counts]
        self._ends = concatenated(ends, np.int64)
        self._counts = concatenated(counts, np.int64)

    def __call__(self, position: int) -> Hashes:
        """Return the set of the member at this position, sorted uint64."""
        path, start = self._files[self._file[position]]
        count = int(self._counts[position])
        return np.fromfile(path, "<u8", count, offset=start + 8 * (int(self._ends[position]) - count))


def read_buckets(buckets: Sequence[Path], index: int) -> Rows:
    """Return the rows of a range's buckets, sorted by key: partitions are ranges of keys, in order."""
    return read_partition(buckets, index, BAND)


def decisions_of(decisions: Sequence[Path], documents: Hashes, between: bool = False) -> Rows:
    """Return the decisions on those of the documents that have an edge, sorted by document; all others are kept.

    Of each range only the rows between the smallest and the largest document are read; `between` returns all of them.
    """
    found = []
    if len(documents):
        low, high = int(documents.min()), int(documents.max())
        for path in decisions:
            rows = map_partition(path, 0, DECISION)
            first, last = (bisect_left(rows, number, key=_document) for number in (low, high + 1))
            rows = rows[first:last]
            found.append(rows if between else rows[np.isin(rows["document"], documents)])
    rows = concatenated(found, DECISION)
    return rows[np.argsort(rows["document"])]


def _document(row: Any) -> int:
    return int(row["document"])


def counts(decisions: Sequence[Path]) -> dict[str, int]:
    """Return how many documents are removed, and how many kept without a comparison with each candidate."""
    found = {"removed": 0, "unverified_kept": 0}
    for path in decisions:
        rows = map_partition(path, 0, DECISION)
        found["removed"] += int(np.count_nonzero(~rows["kept"]))
        found["unverified_kept"] += int(np.count_nonzero(rows["unverified"]))
    return found


def run_all(units: Sequence[Batch], config: NearDuplicatesConfig, work: Path, partitions: int) -> Rows:
    """Run all stages one after another in an empty folder; return the decisions on all documents with an edge.

    What a corpus of one machine's memory needs, and an example of how an engine calls the stages.
    """
    minhash = MinHash(config.words, config.bands, config.rows)
    bands, buckets, routed = ([work / f"{name}-{n}" for n in range(size)] for name, size in (
        ("bands", len(units)), ("buckets", partitions), ("routed", partitions)))  # fmt: skip
    files = [MemberFiles(work / f"members-{n}", work / f"shingles-{n}") for n in range(len(units))]
    for unit, path in zip(units, bands, strict=True):
        shuffle_bands(minhash.band_keys(unit.texts), unit.members["document"], path, partitions)
    for partition, path in enumerate(buckets):
        find_buckets(bands, partition, path)
    ranges = write_components(buckets, work / "components")
    for unit, each in zip(units, files, strict=True):
        shuffle_members([unit], work / "components", config.words, each)
    for source, path in zip(buckets, routed, strict=True):
        shuffle_buckets(source, work / "components", path)
    decisions = [work / f"decisions-{index}" for index in range(ranges)]
    for index, path in enumerate(decisions):
        decide_range(files, routed, index, config, path)
    return concatenated([map_partition(path, 0, DECISION) for path in decisions], DECISION)


def _write_all(path: Path, rows: Rows) -> None:
    write_rows(path, rows, np.zeros(len(rows), np.int64), 1)


def _read_all(path: Path, dtype: np.dtype[np.void]) -> Rows:
    return map_partition(path, 0, dtype)
