"""The stages of a curation; each function is one task of one.

read      a unit       input -> documents.parquet: the usable documents
measure   a unit       texts -> values.parquet: what the rules compare, and the key of the text as it would be written
decide    a unit       values -> decisions.parquet: which rules remove; exact.rows: the keys of the others
exact     a partition  keys -> duplicates.rows: which of equal texts stays
write     a unit       all of it -> shard.parquet and what the manifest and the report need

Files of one unit have the same documents in the same row groups. The number of a document is its unit's number times
2^32 and its position there; so no stage depends on the order in which tasks run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from pretrain.data.curation.config import Keep, LicensesConfig, Unknown
from pretrain.data.curation.engine import Counts, Task
from pretrain.data.curation.language_model import languages_of
from pretrain.data.curation.licenses import LicenseSet
from pretrain.data.curation.near_duplicates.shuffle_files import (
    Rows,
    partitions_of_keys,
    read_partition,
    rows_of_unit,
    write_rows,
)
from pretrain.data.curation.reading import EVIDENCE, RawDocument, Reading, day_of, read_part
from pretrain.data.curation.row_groups import RowGroups, row_groups
from pretrain.data.curation.rules import IS_KEPT, KEPT, LANGUAGE, LANGUAGE_SCORE, Decisions, Rule, decide, may_be_used
from pretrain.data.curation.score_columns import with_scores
from pretrain.data.curation.statistics import C4Lines, Measuring, measure, text_key
from pretrain.data.curation.tombstones import FORGOTTEN, read_tombstones
from pretrain.data.curation.units import WEB_FILES, Part, read_unit, source_errors
from pretrain.data.curation.web.reading import read_web_part

# increase when the files of a stage or a decision change
READ_VERSION, MEASURE_VERSION, DECIDE_VERSION, EXACT_VERSION = 3, 2, 2, 2
BATCH_CHARACTERS, BATCH_DOCUMENTS = 4_000_000, 4096  # of a row group
DOCUMENTS = pa.schema(
    [("id", pa.binary(16)), ("text", pa.large_string()), ("origin", pa.string()), ("url", pa.string()),
     ("date", pa.string()), ("license", pa.string()), ("evidence", pa.string()), ("characters", pa.int64()),
     ("metadata", pa.string())]
)  # fmt: skip
DECISIONS = pa.schema([("first", pa.int16()), ("mask", pa.uint64())])

EXACT = np.dtype(
    [
        ("key", "<u8", (2,)),  # of the text as it would be written
        ("id", "<u8", (2,)),  # of the text as it was read
        ("priority", "<i8"),
        ("preference", "<i8"),  # length, date, or the negative number for `keep=first`
        ("evidence", "u1"),  # position in EVIDENCE
        ("has_url", "u1"),
        ("document", "<u8"),
    ]
)
DUPLICATE = np.dtype([("document", "<u8"), ("kept", "<u8"), ("kept_id", "<u8", (2,)), ("copies", "<i8")])


def read_documents(task: Task) -> Counts:
    """Read a unit; counts: source, documents read, usable ones, unusable by reason, characters."""
    source, parts = read_unit(task)
    reading = Reading(**task.settings["sources"][source])
    skipped: Counter[str] = Counter()
    usable = characters = 0
    with source_errors(source), RowGroups(task.output("documents.parquet"), DOCUMENTS) as output:
        read = (document for part in parts for document in _reader_of(part)(task, part, reading, skipped))
        documents = _remembered(task, read, skipped)
        for batch in _batches(documents):
            output.write(_columns(batch, source))
            usable += len(batch)
            characters += sum(len(document.text) for document in batch)
    return {
        "source": source, "read": usable + skipped.total(), "usable": usable, "unusable": dict(skipped),
        "characters": characters,
    }  # fmt: skip


def _reader_of(part: Part) -> Callable[[Task, Part, Reading, Counter[str]], Iterator[RawDocument]]:
    return read_web_part if part.form in WEB_FILES else read_part


def _remembered(task: Task, documents: Iterator[RawDocument], skipped: Counter[str]) -> Iterator[RawDocument]:
    """Yield the documents that nobody asked to forget."""
    if not task.reads("forgotten"):
        yield from documents
        return
    tombstones = read_tombstones([task.input("forgotten", FORGOTTEN, 0)])
    for document in documents:
        if tombstones.hold(text_key(document.text).hex(), document.url):
            skipped["forgotten on request"] += 1
        else:
            yield document


def _batches(documents: Iterator[RawDocument]) -> Iterator[list[RawDocument]]:
    batch: list[RawDocument] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= BATCH_CHARACTERS or len(batch) == BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _columns(batch: list[RawDocument], source: str) -> dict[str, Any]:
    return {
        "id": [text_key(document.text) for document in batch],
        "text": [document.text for document in batch],
        "origin": [f"{source}/{document.origin}" for document in batch],
        "url": [document.url for document in batch],
        "date": [document.date for document in batch],
        "license": [document.license for document in batch],
        "evidence": [document.evidence for document in batch],
        "characters": [len(document.text) for document in batch],
        "metadata": [document.metadata for document in batch],
    }


def measuring_of(record: dict[str, Any], language: str = "") -> Measuring:
    """Return what is measured of texts of a language, from plain JSON."""
    c4 = None if record["c4"] is None else C4Lines(**record["c4"])
    stop_words = record["stop_words_of"].get(language, record["stop_words"])
    return Measuring(tuple(record["groups"]), frozenset(stop_words), c4, C4Lines(**record["counted"]))


def values_schema(names: Sequence[str], detected: bool) -> pa.Schema:
    """Return the columns of a unit's values."""
    columns = [("key", pa.binary(16)), ("characters", pa.int64())]
    columns += [(LANGUAGE, pa.string()), (LANGUAGE_SCORE, pa.float64())] if detected else []
    return pa.schema(columns + [(name, pa.float64()) for name in names])


def measure_documents(task: Task) -> Counts:
    """Measure the texts of a unit; `key` and `characters` are those of the text as it would be written."""
    source, _ = read_unit(task)
    record = task.settings["sources"][source]
    model = task.settings["model"] if record["detect"] else None
    hows = {language: measuring_of(record, language) for language in ("", *record["stop_words_of"])}
    names = hows[""].names()
    with RowGroups(task.output("values.parquet"), values_schema(names, model is not None)) as output:
        for table in row_groups(task.input("read", "documents.parquet"), ["text", "id"]):
            texts, columns = table["text"].to_pylist(), {}
            languages = [""] * len(texts)
            if model is not None:
                found = languages_of(texts, model["path"], model["characters"])
                languages = [language for language, _ in found]
                columns = {LANGUAGE: languages, LANGUAGE_SCORE: [score for _, score in found]}
            keys, sizes = [], []
            rows = np.empty((len(table), len(names)))
            for number, (raw, raw_key) in enumerate(zip(texts, table["id"], strict=True)):
                values, written = measure(raw, hows.get(languages[number], hows[""]))
                rows[number] = values
                keys.append(raw_key.as_py() if written is raw else text_key(written))
                sizes.append(len(written))
            columns |= {name: rows[:, n] for n, name in enumerate(names)}
            output.write({"key": keys, "characters": sizes} | columns)
    return {}


def measured_groups(task: Task) -> Iterator[pa.Table]:
    """Yield the values of a unit's documents by row group, their scores among them where texts are scored."""
    yield from with_scores(task, row_groups(task.input("measure", "values.parquet")))


def decide_documents(task: Task) -> Counts:
    """Compare the values of a unit with the thresholds; counts: each rule's, with the characters that it removes."""
    source, _ = read_unit(task)
    settings = task.settings["sources"][source]
    rules = RulesOfUnit(settings)
    licenses = licenses_of(task.settings["licenses"])
    keep, partitions = Keep(task.settings["keep"]), int(task.settings["partitions"])
    rows: list[Rows] = []
    counts: dict[str, Counter[str]] = {}
    position = 0
    values = measured_groups(task)
    documents = row_groups(
        task.input("read", "documents.parquet"), ["id", "url", "date", "license", "evidence", "characters"]
    )
    with RowGroups(task.output("decisions.parquet"), DECISIONS) as output:
        for measured, table in zip(values, documents, strict=True):
            found = _decided(rules, measured, table, licenses)
            output.write({"first": found.first, "mask": found.mask})
            for rule, count in found.counts(table["characters"].to_numpy()).items():
                counts.setdefault(rule, Counter()).update(count)
            numbers = (np.uint64(task.index) << np.uint64(32)) + np.arange(
                position, position + len(table), dtype=np.uint64
            )
            rows.append(_exact_rows(measured, table, numbers, keep)[found.first == KEPT])
            rows[-1]["priority"] = settings["priority"]
            position += len(table)
    all_rows = np.concatenate([np.empty(0, EXACT), *rows])
    write_rows(task.output("exact.rows"), all_rows, partitions_of_keys(all_rows["key"][:, 0], partitions), partitions)
    return {"source": source, "rules": {rule: dict(count) for rule, count in counts.items()}}


class RulesOfUnit:
    """The rules of a source: those of texts in any language, and those of languages that have their own."""

    def __init__(self, record: dict[str, Any]) -> None:
        """Take the source's settings of the stage as plain JSON."""
        self.default = [Rule(**rule) for rule in record["rules"]]
        self.by_language = {
            language: [Rule(**rule) for rule in rules] for language, rules in record["rules_of"].items()
        }
        self.kept = None if record["kept"] is None else frozenset(record["kept"])

    def is_kept(self, languages: Sequence[str]) -> npt.NDArray[np.float64]:
        """Return 1.0 for each text in a language that is kept, else 0.0."""
        return np.array([self.kept is None or language in self.kept for language in languages], np.float64)

    def groups(self, languages: Sequence[str]) -> Iterator[tuple[list[Rule], npt.NDArray[np.int64]]]:
        """Yield rules, and the positions of the texts that they are for."""
        of_each = [language if language in self.by_language else "" for language in languages]
        for language in sorted(set(of_each)):
            rows = np.array([number for number, each in enumerate(of_each) if each == language], np.int64)
            yield self.by_language.get(language, self.default), rows


def _decided(rules: RulesOfUnit, measured: pa.Table, table: pa.Table, licenses: LicensesConfig) -> Decisions:
    names = [name for name in measured.column_names if name not in ("key", "characters", LANGUAGE)]
    values = {name: measured[name].to_numpy() for name in names}
    values["characters"] = table["characters"].to_numpy().astype(np.float64)
    licensed = may_be_used(licenses, table["license"].to_pylist())
    if LANGUAGE not in measured.column_names:
        return decide(rules.default, values, licensed)
    languages = measured[LANGUAGE].to_pylist()
    values[IS_KEPT] = rules.is_kept(languages)
    found = Decisions(np.empty(len(table), np.int16), np.empty(len(table), np.uint64))
    for of_language, rows in rules.groups(languages):
        part = decide(of_language, {name: value[rows] for name, value in values.items()}, licensed[rows])
        found.first[rows], found.mask[rows] = part.first, part.mask
    return found


def _exact_rows(measured: pa.Table, table: pa.Table, numbers: npt.NDArray[np.uint64], keep: Keep) -> Rows:
    rows = np.zeros(len(table), EXACT)
    rows["key"], rows["id"] = halves(measured["key"].to_pylist()), halves(table["id"].to_pylist())
    rows["evidence"] = [EVIDENCE.index(evidence) for evidence in table["evidence"].to_pylist()]
    rows["has_url"] = [url is not None for url in table["url"].to_pylist()]
    rows["document"] = numbers
    if keep is Keep.longest:
        rows["preference"] = table["characters"].to_numpy()
    elif keep is Keep.newest:
        rows["preference"] = [day_of(date) for date in table["date"].to_pylist()]
    else:
        rows["preference"] = -numbers.astype(np.int64)
    return rows


def halves(digests: list[bytes]) -> npt.NDArray[np.uint64]:
    """Return digests of 16 bytes as numbers, uint64 (n, 2): the upper half, then the lower."""
    return np.frombuffer(b"".join(digests), ">u8").reshape(-1, 2).astype(np.uint64)


def licenses_of(record: dict[str, Any]) -> LicensesConfig:
    """Return the license settings from plain JSON."""
    return LicensesConfig(LicenseSet(record["allow"]), list(record["deny"]), Unknown(record["unknown"]))


def find_exact(task: Task) -> Counts:
    """Write which document stays of those with one key: its row and those of its copies, sorted by document."""
    paths = task.inputs("decide", "exact.rows") + task.optional_inputs("base", "exact.rows")
    rows = read_partition(paths, task.index, EXACT)
    key, by = rows["key"], rows["document"]
    order = np.lexsort(
        (by, -rows["has_url"].astype(np.int8), -rows["evidence"].astype(np.int8), rows["id"][:, 1], rows["id"][:, 0],
         -rows["preference"], -rows["priority"], key[:, 1], key[:, 0])
    )  # fmt: skip
    rows = rows[order]
    new = np.concatenate([[True], (rows["key"][1:] != rows["key"][:-1]).any(1)])[: len(rows)]
    starts = np.flatnonzero(new)
    copies = np.diff(np.concatenate([starts, [len(rows)]]))
    found = np.zeros(len(rows), DUPLICATE)
    found["document"] = rows["document"]
    found["kept"], found["kept_id"] = (
        np.repeat(rows["document"][starts], copies),
        np.repeat(rows["id"][starts], copies, 0),
    )
    found["copies"] = np.repeat(copies, copies)
    found = found[found["copies"] > 1]
    found = found[np.argsort(found["document"])]
    write_rows(task.output("duplicates.rows"), found, np.zeros(len(found), np.int64), 1)
    return {"duplicates": int((found["document"] != found["kept"]).sum())}


def duplicates_of(paths: list[Path], unit: int) -> Rows:
    """Return the rows of a unit's documents that have equal texts elsewhere, sorted by document."""
    rows = rows_of_unit(paths, unit, DUPLICATE)
    return rows[np.argsort(rows["document"])]


def sample_rank(identity: str, rule: str) -> int:
    """Return by what samples of a rule are chosen: the smallest, so that no chance and no order decides."""
    return xxhash.xxh3_64_intdigest(f"{identity} {rule}".encode())
