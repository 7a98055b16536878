"""The last task of a unit: its shard of the corpus, its decisions, samples of what was removed, and the counts."""

from __future__ import annotations

import heapq
import io
import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import xxhash

from pretrain.data.curation.engine import Counts, Task
from pretrain.data.curation.licenses import needs_attribution
from pretrain.data.curation.near_duplicates.shuffle_files import Rows, concatenated, map_partition
from pretrain.data.curation.rules import KEPT, RULE_NAMES
from pretrain.data.curation.stages import DUPLICATE, RowGroups, row_groups, sample_rank
from pretrain.data.curation.statistics import C4Lines, c4_lines
from pretrain.data.curation.units import read_unit

WRITE_VERSION = 1
EXACT_RULE = "exact"
SAMPLE_CHARACTERS = 2000
DOMAINS_OF_A_UNIT = 10_000
SHARD = pa.schema(
    [("id", pa.string()), ("text", pa.large_string()), ("source", pa.string()), ("origin", pa.string()),
     ("url", pa.string()), ("date", pa.string()), ("license", pa.string()), ("license_evidence", pa.string()),
     ("language", pa.string()), ("characters", pa.int64()), ("cluster", pa.string()), ("cluster_size", pa.int64()),
     ("split_key", pa.uint64())]
)  # fmt: skip
SAMPLES = pa.schema(
    [("rule", pa.string()), ("rank", pa.uint64()), ("id", pa.string()), ("origin", pa.string()),
     ("value", pa.float64()), ("duplicate_of", pa.string()), ("text", pa.large_string())]
)  # fmt: skip


class _Unordered(dict[str, Any]):
    """A row that no comparison of a heap looks into."""

    def __lt__(self, other: object) -> bool:
        return False


@dataclass
class _Written:
    """What one unit adds to the corpus."""

    counts: Counter[str] = field(default_factory=Counter)
    licenses: dict[str, Counter[str]] = field(default_factory=dict)
    languages: dict[str, Counter[str]] = field(default_factory=dict)
    domains: Counter[str] = field(default_factory=Counter)
    years: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[tuple[int, _Unordered]]] = field(default_factory=dict)
    digests: bytearray = field(default_factory=bytearray)


def write_unit(task: Task) -> Counts:
    """Write the documents of a unit that stay, and what the manifest and the report say about it."""
    source, _ = read_unit(task)
    settings = task.settings["sources"][source]
    duplicates = duplicates_of(task.inputs("exact", "duplicates.rows"), task.index) if task.settings["exact"] else None
    written, values_of = _Written(), settings["values"]
    documents = row_groups(task.input("read", "documents.parquet"))
    measured = row_groups(task.input("measure", "values.parquet"))
    decided = row_groups(task.input("decide", "decisions.parquet"))
    attribution = io.BytesIO()
    place = 0
    with (
        RowGroups(task.output("shard.parquet"), SHARD) as shard,
        RowGroups(task.output("decisions.parquet"), _decisions_schema(settings["measured"])) as decisions,
    ):
        for table, values, rules in zip(documents, measured, decided, strict=True):
            group = _Group(source, settings, table, values)
            group.reasons(rules, _of_group(duplicates, task.index, place, len(table)))
            place += len(table)
            decisions.write(group.decisions(rules, settings["measured"]))
            kept = [number for number, reason in enumerate(group.removed_by) if reason is None]
            if kept:
                columns = group.shard(kept)
                shard.write(columns)
                _count(columns, written, attribution)
            _sample(group, written, values_of, task.settings["samples"])
    _write_samples(task.output("samples.parquet"), written)
    task.output("digests").write_bytes(bytes(written.digests))
    task.output("attribution.jsonl.zst").write_bytes(_compressed(attribution.getvalue()))
    return {
        "source": source, **written.counts, "licenses": {name: dict(each) for name, each in written.licenses.items()},
        "languages": {name: dict(each) for name, each in written.languages.items()},
        "domains": dict(written.domains.most_common(DOMAINS_OF_A_UNIT)), "years": dict(written.years),
    }  # fmt: skip


def duplicates_of(paths: list[Path], unit: int) -> Rows:
    """Return the rows of a unit's documents that have equal texts elsewhere, sorted by document."""
    found = []
    for path in paths:
        rows = map_partition(path, 0, DUPLICATE)
        first, last = (bisect_left(rows["document"], unit + more << 32) for more in (0, 1))
        found.append(rows[first:last])
    rows = concatenated(found, DUPLICATE)
    return rows[np.argsort(rows["document"])]


def _of_group(duplicates: Rows | None, unit: int, place: int, count: int) -> dict[int, Any]:
    """Return the row of each document of a row group that has one, by its place in the group."""
    if duplicates is None:
        return {}
    start = (unit << 32) + place
    first, last = np.searchsorted(duplicates["document"], np.array([start, start + count], np.uint64))
    return {int(row["document"]) - start: row for row in duplicates[first:last]}


class _Group:
    """The documents of one row group, and what becomes of each."""

    def __init__(self, source: str, settings: dict[str, Any], table: pa.Table, values: pa.Table) -> None:
        self.source, self.settings, self.table, self.values = source, settings, table, values
        self.ids = [identity.hex() for identity in table["id"].to_pylist()]
        self.removed_by: list[str | None] = []
        self.duplicate_of: list[str | None] = []
        self.copies: list[int] = []

    def reasons(self, rules: pa.Table, duplicates: dict[int, Any]) -> None:
        """Find why each document is removed: by the first rule, or as the copy of another; None: it stays."""
        for number, first in enumerate(rules["first"].to_pylist()):
            row = duplicates.get(number)
            is_copy = row is not None and row["document"] != row["kept"]
            self.removed_by.append(RULE_NAMES[first] if first != KEPT else EXACT_RULE if is_copy else None)
            kept_id = row["kept_id"].tolist() if row is not None and is_copy else None
            self.duplicate_of.append(None if kept_id is None else f"{kept_id[0]:016x}{kept_id[1]:016x}")
            self.copies.append(1 if row is None else int(row["copies"]))

    def decisions(self, rules: pa.Table, measured: list[str]) -> dict[str, Any]:
        """Return the columns of the decisions on all documents."""
        return {
            "id": self.ids, "source": [self.source] * len(self.ids), "origin": self.table["origin"],
            "removed_by": self.removed_by, "rules": rules["mask"], "duplicate_of": self.duplicate_of,
            "license": self.table["license"], "characters": self.table["characters"],
            **{name: self.values[name] for name in measured},
        }  # fmt: skip

    def text(self, number: int) -> str:
        """Return the text of a document as it is written."""
        text: str = self.table["text"][number].as_py()
        c4 = self.settings["c4"]
        return text if c4 is None else c4_lines(text, C4Lines(**c4))[0]

    def shard(self, kept: list[int]) -> dict[str, Any]:
        """Return the columns of the documents that stay."""
        table = self.table.take(kept)
        ids = [self.ids[number] for number in kept]
        return {
            "id": ids, "text": [self.text(number) for number in kept], "source": [self.source] * len(kept),
            "origin": table["origin"].to_pylist(), "url": table["url"].to_pylist(), "date": table["date"].to_pylist(),
            "license": table["license"].to_pylist(), "license_evidence": table["evidence"].to_pylist(),
            "language": [self.settings["language"]] * len(kept),
            "characters": self.values["characters"].take(kept).to_pylist(),
            "cluster": ids, "cluster_size": [self.copies[number] for number in kept],
            "split_key": [int(identity[16:], 16) for identity in ids],
        }  # fmt: skip


def _decisions_schema(measured: list[str]) -> pa.Schema:
    columns = [("id", pa.string()), ("source", pa.string()), ("origin", pa.string()), ("removed_by", pa.string()),
               ("rules", pa.uint64()), ("duplicate_of", pa.string()), ("license", pa.string()),
               ("characters", pa.int64())]  # fmt: skip
    return pa.schema(columns + [(name, pa.float64()) for name in measured])


def _count(columns: dict[str, Any], written: _Written, attribution: io.BytesIO) -> None:
    """Add the documents of a row group of the shard to the counts."""
    for row in _rows(columns):
        size, url, date = row["characters"], row["url"], row["date"]
        one = Counter(documents=1, characters=size)
        written.counts.update(one)
        written.licenses.setdefault(row["license"], Counter()).update(one)
        written.languages.setdefault(row["language"] or "not stated", Counter()).update(one)
        if url is not None and (domain := _domain(url)):
            written.domains[domain] += 1
        if date is not None:
            written.years[date[:4] if date[:4].isdigit() else "other"] += 1
        written.digests += _digest(row)
        if needs_attribution(row["license"]):
            line = {name: row[name] for name in ("id", "license", "url", "origin")}
            attribution.write(json.dumps(line).encode() + b"\n")


def _rows(columns: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def _domain(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "")[:253]
    except ValueError:
        return ""


def _digest(row: dict[str, Any]) -> bytes:
    """Return the hash of all that a document of the corpus is."""
    digest = xxhash.xxh3_128(row["text"].encode())
    digest.update(json.dumps([value for name, value in row.items() if name != "text"]).encode())
    return digest.digest()


def _sample(group: _Group, written: _Written, values_of: dict[str, str], most: int) -> None:
    """Keep those removed documents of each rule whose rank is smallest."""
    for number, rule in enumerate(group.removed_by):
        if rule is None or not most:
            continue
        origin = group.table["origin"][number].as_py()
        rank = sample_rank(f"{group.ids[number]} {origin}", rule)
        chosen = written.samples.setdefault(rule, [])
        if len(chosen) == most and rank >= -chosen[0][0]:
            continue
        value = values_of.get(rule)
        row = {
            "rule": rule, "rank": rank, "id": group.ids[number], "origin": origin,
            "value": group.values[value][number].as_py() if value in group.values.column_names else None,
            "duplicate_of": group.duplicate_of[number],
            "text": group.table["text"][number].as_py()[:SAMPLE_CHARACTERS],
        }  # fmt: skip
        if len(chosen) < most:
            heapq.heappush(chosen, (-rank, _Unordered(row)))
        else:
            heapq.heapreplace(chosen, (-rank, _Unordered(row)))


def _write_samples(path: Path, written: _Written) -> None:
    rows = [row for rule in sorted(written.samples) for _, row in written.samples[rule]]
    rows.sort(key=lambda row: (row["rule"], row["rank"], row["origin"]))
    with RowGroups(path, SAMPLES) as output:
        output.write({name: [row[name] for row in rows] for name in SAMPLES.names})


def _compressed(data: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor(level=3).compress(data) if data else b""
