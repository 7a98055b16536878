"""The last task of a unit: its shard of the corpus, its decisions, samples of what was removed, and the counts."""

from __future__ import annotations

import heapq
import io
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from pretrain.data.curation.base_corpus import index_dtype
from pretrain.data.curation.contamination.overlap import CONTAMINATED
from pretrain.data.curation.corpus_statistics import kept_documents
from pretrain.data.curation.duplicates import Fate, Fates
from pretrain.data.curation.engine import Counts, Task, file_of, number_of_tasks
from pretrain.data.curation.licenses import needs_attribution
from pretrain.data.curation.near_duplicates.minhash import MinHash
from pretrain.data.curation.near_duplicates.paragraphs import cut
from pretrain.data.curation.near_duplicates.shuffle_files import (
    Rows,
    concatenated,
    map_partition,
    rows_of_unit,
    write_rows,
)
from pretrain.data.curation.near_duplicates.tasks import written_text
from pretrain.data.curation.personal_data import replaced
from pretrain.data.curation.row_groups import RowGroups, row_groups
from pretrain.data.curation.rules import (
    CONTAMINATION_RULE,
    DUPLICATE_RULES,
    KEPT,
    LANGUAGE,
    LANGUAGE_SCORE,
    NEAR_RULE,
    PARAGRAPHS_RULE,
    PERSONAL_DATA_RULE,
    RULE_NAMES,
)
from pretrain.data.curation.stages import halves, measured_groups, sample_rank
from pretrain.data.curation.statistics import text_key
from pretrain.data.curation.tombstones import domain_of
from pretrain.data.curation.units import read_unit

WRITE_VERSION = 5
ATTRIBUTION = "ATTRIBUTION.jsonl.zst"  # who must be named
SAMPLE_CHARACTERS = 2000
_COMPARED_CHARACTERS = 100_000  # of a sampled near-duplicate, to find where it differs: memory is bounded
_BEFORE_DIFFERENCE = 200  # characters of a sampled near-duplicate before the first difference from its twin
DOMAINS_OF_A_UNIT = 10_000
SHARD = pa.schema(
    [("id", pa.string()), ("text", pa.large_string()), ("source", pa.string()), ("origin", pa.string()),
     ("url", pa.string()), ("date", pa.string()), ("license", pa.string()), ("license_evidence", pa.string()),
     ("language", pa.string()), ("language_score", pa.float64()), ("characters", pa.int64()), ("cluster", pa.string()),
     ("cluster_size", pa.int64()), ("split_key", pa.uint64()), ("metadata", pa.string()), ("contaminates", pa.string()),
     ("personal_data", pa.int64())]
)  # fmt: skip
SAMPLES = pa.schema(
    [("rule", pa.string()), ("rank", pa.uint64()), ("id", pa.string()), ("origin", pa.string()),
     ("value", pa.float64()), ("duplicate_of", pa.string()), ("text", pa.large_string()),
     ("start", pa.int64())]  # of the text: characters of the document before it
)  # fmt: skip


class _Unordered(dict[str, Any]):
    """A row that no comparison of a heap looks into."""

    def __lt__(self, other: object) -> bool:
        return False


def _counters() -> defaultdict[str, Counter[str]]:
    return defaultdict(Counter)


@dataclass
class Written:
    """What one unit adds to the corpus."""

    counts: Counter[str] = field(default_factory=Counter)
    licenses: defaultdict[str, Counter[str]] = field(default_factory=_counters)
    evidence: defaultdict[str, Counter[str]] = field(default_factory=_counters)
    languages: defaultdict[str, Counter[str]] = field(default_factory=_counters)
    reservations: Counter[str] = field(default_factory=Counter)
    domains: Counter[str] = field(default_factory=Counter)
    years: Counter[str] = field(default_factory=Counter)
    duplicates: Counter[str] = field(default_factory=Counter)
    personal_data: Counter[str] = field(default_factory=Counter)  # spans that were replaced, by kind
    clusters: Counter[str] = field(default_factory=Counter)  # documents kept, by how many each stands for
    samples: dict[str, list[tuple[int, _Unordered]]] = field(default_factory=dict)
    digests: bytearray = field(default_factory=bytearray)


def write_unit(task: Task) -> Counts:
    """Write the documents of a unit that stay, and what the manifest and the report say about it."""
    source, _ = read_unit(task)
    settings = task.settings["sources"][source]
    fates, index, contamination = Fates(task), IndexWriter(task), _Contamination(task)
    written, values_of = Written(), settings["values"]
    documents = row_groups(task.input("read", "documents.parquet"))
    measured = measured_groups(task)
    decided = row_groups(task.input("decide", "decisions.parquet"))
    attribution = io.BytesIO()
    position = 0
    with (
        RowGroups(task.output("shard.parquet"), SHARD) as shard,
        RowGroups(task.output("decisions.parquet"), _decisions_schema(settings["measured"])) as decisions,
    ):
        for table, values, rules in zip(documents, measured, decided, strict=True):
            group = _Group(source, settings | task.settings["personal_data"], table, values)
            group.reasons(rules, fates, contamination, (task.index << 32) + position)
            decisions.write(group.decisions(rules, settings["measured"]))
            kept = [number for number, reason in enumerate(group.removed_by) if reason is None]
            if kept:
                columns = group.shard(kept)
                shard.write(columns)
                index.add(group, kept, position)
                written.personal_data += group.personal_data
                count_documents(columns, written, attribution)
            position += len(table)
            written.duplicates.update(group.counts())
            _sample(group, written, values_of, task.settings["samples"])
    _write_samples(task.output("samples.parquet"), written)
    index.write(task.output("index.rows"))
    task.output("digests").write_bytes(bytes(written.digests))
    task.output("attribution.jsonl.zst").write_bytes(_compressed(attribution.getvalue()))
    return {
        "source": source, **written.counts, "licenses": {name: dict(each) for name, each in written.licenses.items()},
        "languages": {name: dict(each) for name, each in written.languages.items()},
        "license_evidence": {name: dict(each) for name, each in written.evidence.items()},
        "reservations": dict(written.reservations),
        "personal_data": dict(written.personal_data), "duplicates": dict(written.duplicates),
        "clusters": dict(written.clusters),
        "domains": dict(written.domains.most_common(DOMAINS_OF_A_UNIT)), "years": dict(written.years),
    }  # fmt: skip


class IndexWriter:
    """The keys of a unit's kept documents, by which a later curation finds duplicates of them."""

    def __init__(self, task: Task) -> None:
        record = task.settings["index"]
        self._bands = int(record["bands"]) if record["near"] else 0
        self._rows: list[Rows] = []
        self._keys = np.empty((0, 0), np.uint64)
        if self._bands:
            flat = map_partition(task.input("signatures", "keys.rows"), 0, np.uint64)
            self._keys = flat.reshape(-1, self._bands)
            self._minhash = MinHash(record["words"], self._bands, record["rows"])

    def add(self, group: _Group, kept: list[int], position: int) -> None:
        """Add the documents `kept` of a row group whose first document has this position in the unit."""
        rows = np.zeros(len(kept), index_dtype(self._bands))
        rows["key"] = halves([group.key(number) for number in kept])
        if self._bands:
            rows["bands"] = self._keys[position + np.array(kept)]
            cut_ones = [at for at, number in enumerate(kept) if number in group.cut_characters]
            if cut_ones:
                rows["bands"][cut_ones] = self._minhash.band_keys([group.texts[kept[at]] for at in cut_ones])
        self._rows.append(rows)

    def write(self, path: Path) -> None:
        """Write the index of the unit."""
        rows = concatenated(self._rows, index_dtype(self._bands))
        write_rows(path, rows, np.zeros(len(rows), np.int64), 1)


class _Contamination:
    """The documents of a unit that hold items of evaluation sets."""

    def __init__(self, task: Task) -> None:
        settings = task.settings["contamination"]
        self.sets, self.drops = settings["sets"], settings["drop"]
        rows = rows_of_unit(task.optional_inputs("verdicts", "documents.rows"), task.index, CONTAMINATED)
        self._found = {int(row["document"]): (int(row["sets"]), float(row["share"])) for row in rows}

    def of(self, document: int) -> tuple[str, float] | None:
        """Return the names of the sets whose items a document holds, by commas, and the largest share of an item."""
        if (found := self._found.get(document)) is None:
            return None
        bits, share = found
        return ",".join(name for number, name in enumerate(self.sets) if bits >> number & 1), share


class _Group:
    """The documents of one row group, and what becomes of each."""

    def __init__(self, source: str, settings: dict[str, Any], table: pa.Table, values: pa.Table) -> None:
        self.source, self.settings, self.table, self.values = source, settings, table, values
        digests: list[bytes] = table["id"].to_pylist()
        self.ids = [digest.hex() for digest in digests]
        self._is_detected = LANGUAGE in values.column_names
        found = values[LANGUAGE].to_pylist() if self._is_detected else [settings["language"]] * len(self.ids)
        self.languages: list[str | None] = [language or None for language in found]  # detected, else the source's
        self._keys: list[bytes] = values["key"].to_pylist()
        self._is_whole = [key == digest for key, digest in zip(self._keys, digests, strict=True)]  # no line left out
        self.removed_by: list[str | None] = []
        self.fates: list[Fate] = []
        self.texts: dict[int, str] = {}  # of the documents that stay, as they are compared
        self.written: dict[int, tuple[str, Counter[str]]] = {}  # and as they are written, with the spans replaced
        self.cut_characters: dict[int, int] = {}
        self.contaminates: dict[int, str] = {}
        self.personal_data: Counter[str] = Counter()

    def reasons(self, rules: pa.Table, fates: Fates, contamination: _Contamination, first: int) -> None:
        """Find why each document is removed: by the first rule, or as a duplicate; None: it stays."""
        for number, rule in enumerate(rules["first"].to_pylist()):
            fate = fates.of(first + number) if rule == KEPT else Fate()
            self.fates.append(fate)
            reason = fate.removed_by if rule == KEPT else RULE_NAMES[rule]
            if reason is None and (holds := contamination.of(first + number)) is not None:
                self.contaminates[number] = holds[0]
                if contamination.drops:
                    reason, self.fates[-1] = CONTAMINATION_RULE, replace(fate, similarity=holds[1])
            if reason is None:
                reason = self._text(number, fate)
            self.removed_by.append(reason)

    def _text(self, number: int, fate: Fate) -> str | None:
        """Make the text of a document that stays; return why it does not if nothing is left of it."""
        raw: str = self.table["text"][number].as_py()
        whole = raw if self._is_whole[number] else written_text(raw, self.settings["c4"])
        text = cut(whole, fate.paragraphs)
        if fate.paragraphs:
            self.cut_characters[number] = len(whole) - len(text)
            if not text.strip():
                return PARAGRAPHS_RULE
        written, spans = self.without_personal_data(text)
        if spans and not written.strip():
            return PERSONAL_DATA_RULE
        self.texts[number], self.written[number] = text, (written, spans)
        return None

    def counts(self) -> Counter[str]:
        """Return how many documents each kind of duplicate removed, and what was cut."""
        found = Counter(reason for reason in self.removed_by if reason in DUPLICATE_RULES)
        found["unverified_kept"] = sum(self.fates[number].unverified for number in self.texts)
        found["documents_cut"] = sum(number in self.texts for number in self.cut_characters)
        found["paragraphs_cut"] = sum(len(self.fates[number].paragraphs) for number in self.cut_characters)
        found["characters_cut"] = sum(self.cut_characters.values())
        return found

    def decisions(self, rules: pa.Table, measured: list[str]) -> dict[str, Any]:
        """Return the columns of the decisions on all documents."""
        return {
            "id": self.ids, "source": [self.source] * len(self.ids), "origin": self.table["origin"],
            "removed_by": self.removed_by, "rules": rules["mask"], "duplicate_of": [fate.twin for fate in self.fates],
            "similarity": [fate.similarity for fate in self.fates],
            "cluster": [fate.cluster for fate in self.fates],
            "license": self.table["license"], "characters": self.table["characters"],
            "language": self.languages,
            **{name: self.values[name] for name in measured},
        }  # fmt: skip

    def key(self, number: int) -> bytes:
        """Return the key of the text of a document that stays, before personal data is replaced."""
        return text_key(self.texts[number]) if number in self.cut_characters else self._keys[number]

    def without_personal_data(self, text: str) -> tuple[str, Counter[str]]:
        """Return a text as it is written, and how many spans of each kind were replaced."""
        if not self.settings["kinds"]:
            return text, Counter()
        return replaced(text, self.settings["kinds"], remove=self.settings["replacement"] == "nothing")

    def sampled_text(self, number: int) -> str:
        """Return the beginning of the text of a document that is removed; of a near-duplicate, more of it.

        What is shown of it is chosen when the text that stays is written: `merge_samples`.
        """
        text: str = self.table["text"][number].as_py()
        if self.removed_by[number] == NEAR_RULE:
            return self.without_personal_data(written_text(text, self.settings["c4"])[:_COMPARED_CHARACTERS])[0]
        return self.without_personal_data(text[:SAMPLE_CHARACTERS])[0]

    def shard(self, kept: list[int]) -> dict[str, Any]:
        """Return the columns of the documents that stay."""
        table = self.table.take(kept)
        ids = [self.ids[number] for number in kept]
        texts, spans = list[str](), list[int]()
        for number in kept:
            text, counts = self.written[number]
            self.personal_data += counts
            texts.append(text)
            spans.append(counts.total())
        clusters = [self.fates[number].cluster or self.ids[number] for number in kept]
        return {
            "id": ids, "text": texts, "source": [self.source] * len(kept),
            "origin": table["origin"].to_pylist(), "url": table["url"].to_pylist(), "date": table["date"].to_pylist(),
            "license": table["license"].to_pylist(), "license_evidence": table["evidence"].to_pylist(),
            "language": [self.languages[number] for number in kept],
            "language_score": [self.values[LANGUAGE_SCORE][number].as_py() for number in kept]
            if self._is_detected else [None] * len(kept),
            "characters": [len(text) for text in texts],
            "cluster": clusters, "cluster_size": [self.fates[number].copies for number in kept],
            "split_key": [int(cluster[16:], 16) for cluster in clusters],
            "metadata": table["metadata"].to_pylist(),
            "contaminates": [self.contaminates.get(number) for number in kept],
            "personal_data": spans,
        }  # fmt: skip


def _decisions_schema(measured: list[str]) -> pa.Schema:
    columns = [("id", pa.string()), ("source", pa.string()), ("origin", pa.string()), ("removed_by", pa.string()),
               ("rules", pa.uint64()), ("duplicate_of", pa.string()), ("similarity", pa.float64()),
               ("cluster", pa.string()), ("license", pa.string()), ("characters", pa.int64()),
               ("language", pa.string())]  # fmt: skip
    return pa.schema(columns + [(name, pa.float64()) for name in measured])


def count_documents(columns: dict[str, Any], written: Written, attribution: io.BytesIO | None) -> None:
    """Add the documents of a row group of the shard to the counts, and who must be named to `attribution`."""
    for row in _rows(columns):
        size, url, date = row["characters"], row["url"], row["date"]
        language = row["language"] or "not stated"
        for counts in (
            written.counts, written.licenses[row["license"]], written.evidence[row["license_evidence"]],
            written.languages[language],
        ):  # fmt: skip
            counts["documents"] += 1
            counts["characters"] += size
        facts = json.loads(row["metadata"]) if row["metadata"] else {}
        for reservation in facts.get("reservations", ()):
            written.reservations[reservation] += 1
        if url is not None and (domain := domain_of(url)):
            written.domains[domain] += 1
        if date is not None:
            written.years[date[:4] if date[:4].isdigit() else "other"] += 1
        written.clusters[_size_class(row["cluster_size"])] += 1
        written.digests += _digest(row)
        if attribution is not None and needs_attribution(row["license"]):
            line = {name: row[name] for name in ("id", "license", "license_evidence", "url", "origin")}
            line |= {name: facts[name] for name in ("title", "author") if name in facts}
            attribution.write(json.dumps(line).encode() + b"\n")


def _size_class(size: int) -> str:
    """Return the class of a cluster's size, between powers of two: 1, 2, 3-4, 5-8 and so on."""
    high = 1 << (size - 1).bit_length()
    return str(high) if high <= 2 else f"{high // 2 + 1}-{high}"


def _rows(columns: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def _digest(row: dict[str, Any]) -> bytes:
    """Return the hash of all that a document of the corpus is."""
    digest = xxhash.xxh3_128(row["text"].encode())
    digest.update(json.dumps([value for name, value in row.items() if name != "text"]).encode())
    return digest.digest()


def _sample(group: _Group, written: Written, values_of: dict[str, str], most: int) -> None:
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
            "value": group.values[value][number].as_py()
            if value in group.values.column_names else group.fates[number].similarity,
            "duplicate_of": group.fates[number].twin,
            "text": group.sampled_text(number), "start": 0,
        }  # fmt: skip
        if len(chosen) < most:
            heapq.heappush(chosen, (-rank, _Unordered(row)))
        else:
            heapq.heapreplace(chosen, (-rank, _Unordered(row)))


def _write_samples(path: Path, written: Written) -> None:
    rows = [row for rule in sorted(written.samples) for _, row in written.samples[rule]]
    rows.sort(key=lambda row: (row["rule"], row["rank"], row["origin"]))
    with RowGroups(path, SAMPLES) as output:
        output.write({name: [row[name] for row in rows] for name in SAMPLES.names})


def _compressed(data: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor(level=3).compress(data) if data else b""


def merge_samples(folder: Path, output: Path, most: int) -> None:
    """Write samples.parquet of a corpus: of the samples of all units the `most` of each rule with the smallest rank.

    The shards must be in the folder `output` by then: of a near-duplicate, the part of the text that differs from the
    one that stays is a sample.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    for index in range(number_of_tasks(folder)):
        for table in row_groups(file_of(folder, index, "samples.parquet")):
            for row in table.to_pylist():
                rows.setdefault(row["rule"], []).append(row)
        for rule, found in rows.items():
            found.sort(key=lambda row: row["rank"])
            del rows[rule][most:]
    _cut_near(rows.get(NEAR_RULE, []), output)
    chosen = [row for rule in sorted(rows) for row in rows[rule]]
    draft = output / ".samples.tmp"
    with RowGroups(draft, SAMPLES) as file:
        file.write({name: [row[name] for row in chosen] for name in SAMPLES.names})
    draft.replace(output / "samples.parquet")


def _cut_near(rows: list[dict[str, Any]], output: Path) -> None:
    """Cut the texts of near-duplicates to the part that begins before the first difference from the twin."""
    twins = kept_documents(output, {row["duplicate_of"] for row in rows})
    for row in rows:
        _, twin = twins.get(row["duplicate_of"], ("", row["text"]))  # one of a base corpus is not here
        pairs = enumerate(zip(row["text"], twin, strict=False))
        differs_at = next((at for at, (one, other) in pairs if one != other), min(len(row["text"]), len(twin)))
        has_difference = differs_at < max(len(row["text"]), len(twin)) and differs_at < _COMPARED_CHARACTERS
        row["start"] = max(0, differs_at - _BEFORE_DIFFERENCE) if has_difference else 0
        row["text"] = row["text"][row["start"] :][:SAMPLE_CHARACTERS]


def merge_attribution(folder: Path, output: Path) -> None:
    """Write who must be named: frames of zstd one after another are one file."""
    draft = output / ".attribution.tmp"
    with draft.open("wb") as file:
        for index in range(number_of_tasks(folder)):
            with file_of(folder, index, "attribution.jsonl.zst").open("rb") as frame:
                shutil.copyfileobj(frame, file)
        size = file.tell()
    target = output / ATTRIBUTION
    target.unlink(missing_ok=True)
    if size:
        draft.replace(target)
    draft.unlink(missing_ok=True)
