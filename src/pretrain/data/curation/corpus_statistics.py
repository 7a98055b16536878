"""What the decisions and shards of a corpus say about it as a whole, read row group by row group in bounded memory."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pretrain.data.curation.rules import RULE_NAMES, Rule
from pretrain.errors import DataError, printable

BINS = 40
CLUSTERS = 20
COPIES = 5  # of a cluster that are named
PREVIEW = 300  # characters of a cluster's document
_LOG_RATIO = 50.0  # largest divided by smallest value from which bins widen with the value
_BEYOND = 4.0  # times a threshold from above: larger values are counted in the last bin
_FACTORS = (0.5, 0.75, 1.0, 1.5, 2.0)  # of a threshold, to ask what another one would keep


@dataclass
class Threshold:
    """A rule on the sources that have the same thresholds: the values of their documents, and what others would keep.

    `low_kept` and `high_kept` are (threshold, documents that all rules keep with it), the other threshold unchanged.
    """

    rule: Rule
    sources: list[str]
    edges: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    low_kept: list[tuple[float, int]] = field(default_factory=list)
    high_kept: list[tuple[float, int]] = field(default_factory=list)
    unmeasured: int = 0  # documents without a value, which the rule keeps
    is_log: bool = False  # whether the bins widen with the value

    def add(self, values: npt.NDArray[np.float64], mask: npt.NDArray[np.uint64]) -> None:
        """Count documents; `mask` has a bit for each rule that would remove one."""
        known = values[~np.isnan(values)]
        self.unmeasured += len(values) - len(known)
        self.counts += np.histogram(np.clip(known, self.edges[0], self.edges[-1]), self.edges)[0]
        others = mask & ~np.uint64(1 << RULE_NAMES.index(self.rule.name)) == 0
        rule = self.rule
        for kept, low in ((self.low_kept, True), (self.high_kept, False)):
            for position, (threshold, count) in enumerate(kept):
                changed = Rule("", "", threshold, rule.high) if low else Rule("", "", rule.low, threshold)
                passed = others & ~changed.removes({"": values})
                kept[position] = (threshold, count + int(np.count_nonzero(passed)))


def thresholds(folder: Path, rules: Mapping[str, Mapping[str, Any]]) -> list[Threshold]:
    """Return the thresholds of all rules on a measured number; `rules` are those of each source in the manifest."""
    found: dict[tuple[str, Any, Any], Threshold] = {}
    for source, of_source in rules.items():
        for name, rule in of_source.items():
            if name in RULE_NAMES and rule["high"] != -1.0:  # -1: the number of a line, so any removes
                key = (name, rule["low"], rule["high"])
                made = Threshold(Rule(name, rule["value"], rule["low"], rule["high"]), [])
                found.setdefault(key, made).sources.append(source)
    ordered = sorted(found.values(), key=lambda each: (RULE_NAMES.index(each.rule.name), each.sources))
    ranges = _Ranges()
    for path in _files(folder, "decisions"):
        ranges.read(path)
    ordered = [each for each in ordered if _prepare(each, ranges)]
    for path in _files(folder, "decisions"):
        for table in row_groups_of(path):
            _count(ordered, table)
    return ordered


def _count(ordered: Sequence[Threshold], table: pa.Table) -> None:
    source = table["source"][0].as_py()
    mask = table["rules"].to_numpy()
    for each in ordered:
        if source in each.sources and each.rule.value in table.column_names:
            each.add(table[each.rule.value].to_numpy().astype(np.float64), mask)


class _Ranges:
    """The lowest and highest value of each column of each source, from the files' own statistics."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], tuple[float, float]] = {}

    def read(self, path: Path) -> None:
        with opened(path) as file:
            for number in range(file.num_row_groups):
                group = file.metadata.row_group(number)
                columns = {group.column(n).path_in_schema: group.column(n).statistics for n in range(group.num_columns)}
                source = columns["source"].min
                for name, statistics in columns.items():
                    if statistics is not None and statistics.has_min_max and isinstance(statistics.min, float | int):
                        low, high = self.found.get((source, name), (math.inf, -math.inf))
                        self.found[source, name] = (min(low, statistics.min), max(high, statistics.max))


def _prepare(each: Threshold, ranges: _Ranges) -> bool:
    """Choose the bins and the thresholds to try; False where nothing was measured."""
    rule = each.rule
    known = [ranges.found[source, rule.value] for source in each.sources if (source, rule.value) in ranges.found]
    if not known:
        return False
    marks = [mark for mark in (rule.low, rule.high) if mark is not None]
    low, high = min(each[0] for each in known), max(each[1] for each in known)
    if rule.low is None and rule.high:
        high = min(high, _BEYOND * rule.high)
    low, high = min(low, *marks), max(high, *marks)
    if high == low:
        high = low + 1
    each.is_log = high > _LOG_RATIO and high / max(low, 1.0) > _LOG_RATIO
    if each.is_log:
        each.edges = np.geomspace(max(low, 1.0), high, BINS + 1)
    else:
        each.edges = np.linspace(low, high, BINS + 1)
    whole = rule.value in ("words", "characters", "sentences", "stop_words", "characters_left")
    for mark, kept in ((rule.low, each.low_kept), (rule.high, each.high_kept)):
        if mark is not None:
            kept += [(number, 0) for number in _tried(float(mark), whole)]
    return True


def _tried(mark: float, whole: bool) -> list[float]:
    tried = [float(round(mark * factor)) if whole else float(f"{mark * factor:.2g}") for factor in _FACTORS]
    if not whole and mark <= 1:
        tried = [min(1.0, number) for number in tried]
    return sorted({*tried, mark})


@dataclass(frozen=True)
class Cluster:
    """Documents that are copies of one another, of which one is kept."""

    size: int
    id: str
    source: str
    origin: str
    text: str  # how the kept one begins
    copies: list[str] = field(default_factory=list)  # origins of the first of those that were removed for it


def clusters(folder: Path) -> tuple[dict[int, int], list[Cluster]]:
    """Return how many kept documents stand for how many, by that number, and the largest clusters."""
    sizes: Counter[int] = Counter()
    largest: list[tuple[int, int, Path, int, int]] = []  # size, minus the position in the corpus, where it is
    position = 0
    for path in _files(folder, "data"):
        for number, table in enumerate(row_groups_of(path, ["cluster_size"])):
            for row, size in enumerate(table["cluster_size"].to_pylist()):
                sizes[size] += 1
                position += 1
                if size > 1:
                    entry = (size, -position, path, number, row)
                    if len(largest) < CLUSTERS:
                        heapq.heappush(largest, entry)
                    elif entry > largest[0]:
                        heapq.heapreplace(largest, entry)
    chosen = [_cluster(*entry) for entry in sorted(largest, reverse=True)]
    _name_copies(folder, {cluster.id: cluster for cluster in chosen})
    return dict(sorted(sizes.items())), chosen


def _name_copies(folder: Path, chosen: Mapping[str, Cluster]) -> None:
    for path in _files(folder, "decisions") if chosen else ():
        for table in row_groups_of(path, ["duplicate_of", "removed_by", "origin"]):
            table = _rows_with(table, "duplicate_of", chosen)
            for row in table.to_pylist():
                copies = chosen[row["duplicate_of"]].copies
                if row["removed_by"] is not None and len(copies) < COPIES:
                    copies.append(row["origin"])


def _rows_with(table: pa.Table, column: str, values: Collection[str]) -> pa.Table:
    return table.filter(pc.is_in(table[column], value_set=pa.array(sorted(values), pa.string())))


def kept_documents(folder: Path, ids: Collection[str]) -> dict[str, tuple[str, str]]:
    """Return origin and text of those of the documents, named by their ids, that are in the corpus."""
    found: dict[str, tuple[str, str]] = {}
    for path in _files(folder, "data") if ids else ():
        with opened(path) as file:
            for number in range(file.num_row_groups):
                try:
                    if not len(_rows_with(file.read_row_group(number, ["id"]), "id", ids)):
                        continue
                    table = _rows_with(file.read_row_group(number, ["id", "origin", "text"]), "id", ids)
                except (OSError, pa.ArrowException) as error:
                    raise _unreadable(path, error) from error
                found |= {row["id"]: (row["origin"], row["text"]) for row in table.to_pylist()}
    return found


def _cluster(size: int, _: int, path: Path, number: int, row: int) -> Cluster:
    with opened(path) as file:
        table = file.read_row_group(number, ["id", "source", "origin", "text"]).slice(row, 1)
    (found,) = table.to_pylist()
    return Cluster(size, found["id"], found["source"], found["origin"], found["text"][:PREVIEW])


def languages(folder: Path) -> dict[str, tuple[int, int]]:
    """Return by language how many usable documents there were, and how many are kept, the most frequent first."""
    read: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    for path in _files(folder, "decisions"):
        for table in row_groups_of(path, ["language", "removed_by"]):
            names = [name or "none" for name in table["language"].to_pylist()]
            read.update(names)
            reasons = table["removed_by"].to_pylist()
            kept.update(name for name, reason in zip(names, reasons, strict=True) if reason is None)
    return {name: (count, kept[name]) for name, count in sorted(read.items(), key=lambda item: (-item[1], item[0]))}


def samples(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the removed documents that were kept to look at, by rule in the order in which rules are tried."""
    found: dict[str, list[dict[str, Any]]] = {}
    path = folder / "samples.parquet"
    if path.exists():
        for table in row_groups_of(path):
            for row in table.to_pylist():
                found.setdefault(row["rule"], []).append(row)
    return {rule: found[rule] for rule in sorted(found, key=order_of)}


def order_of(rule: str) -> tuple[int, str]:
    """Return by what rules are sorted: as they are tried, and those that find duplicates after them."""
    return (RULE_NAMES.index(rule) if rule in RULE_NAMES else len(RULE_NAMES), rule)


def _files(folder: Path, name: str) -> list[Path]:
    return sorted((folder / name).glob("*.parquet"))


def opened(path: Path) -> pq.ParquetFile:
    """Return a file of a corpus; DataError if it is missing or damaged."""
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def row_groups_of(path: Path, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Yield the row groups of a file of a corpus that are not empty; DataError if it is missing or damaged."""
    with opened(path) as file:
        for number in range(file.num_row_groups):
            try:
                table = file.read_row_group(number, columns)
            except (OSError, pa.ArrowException) as error:
                raise _unreadable(path, error) from error
            if len(table):
                yield table


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = printable(" ".join(str(error).split()), one_line=True)[:300]
    return DataError(f"{printable(str(path))} cannot be read: {reason}. Give the command that made the corpus again.")
