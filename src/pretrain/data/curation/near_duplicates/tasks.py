"""The stages of near-duplicates as tasks of a curation. See `near_duplicates.stages` for what each does.

signatures    a unit             texts as they would be written -> band keys
bands         a unit or shard    keys of the documents that no rule removed and that are no copies, by partition
buckets, components, members, routed, near: as in `near_duplicates.stages`
guard         a range            documents to leave out so that no pair is split between training and validation
paragraphs    a unit or shard    long paragraphs of the documents that are kept
repeats       a partition        those that stand in an earlier document

Tasks with numbers after those of the units are shards of the base corpus.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pretrain.data.curation.base_corpus import CLUSTER, base_texts, index_of
from pretrain.data.curation.contamination.overlap import CONTAMINATED
from pretrain.data.curation.engine import Counts, Task
from pretrain.data.curation.near_duplicates import components, paragraphs, stages
from pretrain.data.curation.near_duplicates.config import NearDuplicatesConfig, Within
from pretrain.data.curation.near_duplicates.minhash import MinHash, keys_within
from pretrain.data.curation.near_duplicates.shingles import Hashes
from pretrain.data.curation.near_duplicates.shuffle_files import (
    Rows,
    concatenated,
    map_partition,
    rows_of_unit,
    write_rows,
)
from pretrain.data.curation.near_duplicates.verification import DECISION, MEMBER, guard
from pretrain.data.curation.row_groups import row_groups
from pretrain.data.curation.rules import LANGUAGE
from pretrain.data.curation.stages import EXACT, duplicates_of
from pretrain.data.curation.statistics import C4Lines, c4_text
from pretrain.data.curation.units import read_unit
from pretrain.data.sources.splits import is_held_out

SIGNATURES_VERSION, BANDS_VERSION, MEMBERS_VERSION, GUARD_VERSION = 1, 1, 1, 1
GONE = np.dtype([("document", "<u8")])
LOW = np.uint64(0xFFFFFFFF)


def near_settings(config: NearDuplicatesConfig) -> dict[str, Any]:
    """Return the settings of near-duplicates as plain JSON."""
    names = ("words", "bands", "rows", "similarity", "verify", "paragraphs")
    return {name: getattr(config, name) for name in names} | {"within": config.within.value}


def _config(task: Task) -> NearDuplicatesConfig:
    record = task.settings["near"]
    return NearDuplicatesConfig(**record | {"within": Within(record["within"])})


def written_text(text: str, c4: dict[str, Any] | None) -> str:
    """Return a text as the corpus has it before paragraphs are cut: the lines that c4 keeps, or all."""
    return text if c4 is None else c4_text(text, C4Lines(**c4))


def sign_documents(task: Task) -> Counts:
    """Write the band keys of all documents of a unit, in their order."""
    source, _ = read_unit(task)
    c4, near = task.settings["c4"][source], task.settings
    minhash = MinHash(near["words"], near["bands"], near["rows"])
    found = []
    for table in row_groups(task.input("read", "documents.parquet"), ["text"]):
        texts = [written_text(text, c4) for text in table["text"].to_pylist()]
        found.append(minhash.band_keys(texts))
    keys = np.concatenate([np.empty((0, near["bands"]), np.uint64), *found]).ravel()
    write_rows(task.output("keys.rows"), keys, np.zeros(len(keys), np.int64), 1)
    return {}


@dataclass(frozen=True)
class _TaskUnit:
    """A unit, or a shard of the base corpus."""

    task: Task

    @property
    def shard(self) -> int:
        """The shard's number; negative for a unit."""
        return self.task.index - int(self.task.settings["units"])

    def documents(self) -> tuple[Rows, npt.NDArray[np.uint32]]:
        """Return the rows (of EXACT) of all that may be kept, sorted by document, and the copies of each."""
        task, shard = self.task, self.shard
        path = task.input("base", "exact.rows", shard) if shard >= 0 else task.input("decide", "exact.rows")
        partitions = range(int(task.settings["partitions"]))
        rows = concatenated((map_partition(path, each, EXACT) for each in partitions), EXACT)
        rows = rows[np.argsort(rows["document"])]
        copies = np.ones(len(rows), np.uint32)
        if shard >= 0:
            return rows, copies
        found = duplicates_of(task.optional_inputs("exact", "duplicates.rows"), task.index)
        positions = np.searchsorted(rows["document"], found["document"])
        copies[positions] = found["copies"]
        stays = np.ones(len(rows), bool)
        stays[positions] = found["document"] == found["kept"]
        return rows[stays], copies[stays]

    def keys(self, bands: int) -> Hashes:
        """Return the band keys of all documents of the unit, uint64 (documents, bands)."""
        if self.shard >= 0:
            base = self.task.settings["base"]
            return index_of(Path(base["path"]), base["shards"][self.shard], bands)["bands"]
        return map_partition(self.task.input("signatures", "keys.rows"), 0, np.uint64).reshape(-1, bands)

    def groups(self, within: Within) -> list[str]:
        """Return for each document that of which it is compared with all others."""
        column = "source" if within is Within.source else "language"
        if self.shard >= 0:
            tables = base_texts(self.task.settings["base"], self.shard)
            return [value or "not stated" for table in tables for value in table[column].to_pylist()]
        source, _ = read_unit(self.task)
        stated = self.task.settings["languages"][source]
        if within is Within.language and stated is None:
            measured = list(row_groups(self.task.input("measure", "values.parquet")))
            if measured and LANGUAGE in measured[0].column_names:
                return [value or "not stated" for table in measured for value in table[LANGUAGE].to_pylist()]
        value = source if within is Within.source else stated or "not stated"
        with_rows = row_groups(self.task.input("read", "documents.parquet"), ["characters"])
        return [value] * sum(len(table) for table in with_rows)

    def texts(self, wanted: Hashes) -> Iterator[tuple[slice, list[str]]]:
        """Yield the written texts of documents, sorted numbers, by row group with their positions in `wanted`."""
        start = self.task.index << 32
        if self.shard >= 0:
            tables, c4 = base_texts(self.task.settings["base"], self.shard), None
        else:
            tables = row_groups(self.task.input("read", "documents.parquet"), ["text"])
            c4 = self.task.settings["c4"][read_unit(self.task)[0]]
        for table in tables:
            first, last = np.searchsorted(wanted, np.array([start, start + len(table)], np.uint64))
            chosen = (wanted[first:last] - np.uint64(start)).astype(np.int64)
            start += len(table)
            if len(chosen):
                yield slice(first, last), [written_text(text, c4) for text in table["text"].take(chosen).to_pylist()]

    def members(self) -> Rows:
        """Return the documents as rows of MEMBER."""
        rows, copies = self.documents()
        found = np.zeros(len(rows), MEMBER)
        for name in ("document", "priority", "preference", "id"):
            found[name] = rows[name]
        found["copies"] = copies
        if self.shard >= 0:
            found["base"] = True
            found["priority"] = 0
            found["cluster"] = map_partition(self.task.input("base", "clusters.rows", self.shard), 0, CLUSTER)[
                "cluster"
            ]
        return found


def shuffle_bands(task: Task) -> Counts:
    """Write the band keys of a unit's or shard's documents by partition."""
    unit, config = _TaskUnit(task), _config(task)
    documents = unit.documents()[0]["document"]
    keys = unit.keys(config.bands)
    if config.within is not Within.all:
        keys = keys_within(keys, unit.groups(config.within))
    keys = keys[(documents & LOW).astype(np.int64)]
    stages.shuffle_bands(keys, documents, task.output("bands.rows"), int(task.settings["buckets"]))
    return {}


def find_buckets(task: Task) -> Counts:
    """Write the buckets of a partition."""
    stages.find_buckets(task.inputs("bands", "bands.rows"), task.index, task.output("buckets.rows"))
    return {}


def find_components(task: Task) -> Counts:
    """Write the component of each document with an edge; counts: ranges."""
    buckets = task.inputs("buckets", "buckets.rows")
    return {"ranges": stages.write_components(buckets, task.output("components.rows"))}


def shuffle_members(task: Task) -> Counts:
    """Write order, id and shingles of a unit's or shard's documents with an edge, by range."""
    unit, config = _TaskUnit(task), _config(task)
    known = task.input("components", "components.rows", 0)
    members = unit.members()
    rows = map_partition(known, 0, components.COMPONENT)
    _, positions = components.find_components(rows, members["document"])
    members = members[positions]
    batches = (stages.Batch(members[chosen], texts) for chosen, texts in unit.texts(members["document"]))
    output = stages.MemberFiles(task.output("members.rows"), task.output("shingles.rows"))
    stages.shuffle_members(batches, known, config.words, output)
    return {}


def route_buckets(task: Task) -> Counts:
    """Write the buckets of a partition by range."""
    stages.shuffle_buckets(
        task.input("buckets", "buckets.rows"), task.input("components", "components.rows", 0),
        task.output("routed.rows"),
    )  # fmt: skip
    return {}


def decide_range(task: Task) -> Counts:
    """Write what is kept of a range of components."""
    files = zip(task.inputs("members", "members.rows"), task.inputs("members", "shingles.rows"), strict=True)
    members = [stages.MemberFiles(*each) for each in files]
    routed = task.inputs("routed", "routed.rows")
    stages.decide_range(members, routed, task.index, _config(task), task.output("near.rows"))
    return {}


def guard_range(task: Task) -> Counts:
    """Write the documents of a range that would be beside one of the other split."""
    decisions = map_partition(task.input("near", "near.rows"), 0, DECISION)
    bands = stages.read_buckets(task.inputs("routed", "routed.rows"), task.index)
    fraction = float(task.settings["fraction"])
    gone = np.zeros(0, GONE)
    if len(decisions):
        documents = guard(bands, decisions, is_held_out(decisions["cluster"][:, 1], fraction))
        gone = np.zeros(len(documents), GONE)
        gone["document"] = documents
    write_rows(task.output("gone.rows"), gone, np.zeros(len(gone), np.int64), 1)
    return {"gone": len(gone)}


def gone_documents(paths: list[Path], task_index: int) -> Hashes:
    """Return the documents of a unit that the guard leaves out, sorted uint64."""
    rows = concatenated((map_partition(path, 0, GONE) for path in paths), GONE)["document"]
    return np.sort(rows[rows >> np.uint64(32) == task_index])


def shuffle_paragraphs(task: Task) -> Counts:
    """Write the long paragraphs of the documents of a unit or shard that are kept."""
    unit, characters = _TaskUnit(task), int(task.settings["near"]["paragraphs"])
    members = unit.members()
    if unit.shard < 0:
        found = stages.decisions_of(task.optional_inputs("near", "near.rows"), members["document"])
        gone = np.union1d(
            found["document"][~found["kept"]], gone_documents(task.optional_inputs("guard", "gone.rows"), task.index)
        )
        if task.settings.get("drops"):
            verdicts = task.inputs("verdicts", "documents.rows")
            gone = np.union1d(gone, rows_of_unit(verdicts, task.index, CONTAMINATED)["document"])
        members = members[~np.isin(members["document"], gone)]
    rows = [
        paragraphs.paragraph_rows(member, text, characters, task.index)
        for chosen, texts in unit.texts(members["document"])
        for member, text in zip(members[chosen], texts, strict=True)
    ]
    found = concatenated(rows, paragraphs.PARAGRAPH)
    paragraphs.shuffle_paragraphs(found, task.output("paragraphs.rows"), int(task.settings["buckets"]))
    return {}


def cut_repeats(task: Task) -> Counts:
    """Write the repeats of a partition for the units."""
    paths = task.inputs("paragraphs", "paragraphs.rows")
    paragraphs.find_repeats(paths, task.index, task.output("repeats.rows"), len(paths))
    return {}
