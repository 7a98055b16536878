"""Every hash, count and promise of a corpus checked again."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from pretrain.data.curation.engine import file_of
from pretrain.data.curation.manifest import MANIFEST, check_identity, check_shard, read_manifest
from pretrain.data.curation.near_duplicates.shingles import Hashes, Shingler, jaccard
from pretrain.data.curation.near_duplicates.tasks import written_text
from pretrain.data.curation.row_groups import row_groups
from pretrain.data.curation.rules import (
    CONTAMINATION_RULE,
    EXACT_RULE,
    FORGOTTEN_RULE,
    GUARD_RULE,
    NEAR_RULE,
    PARAGRAPHS_RULE,
    PERSONAL_DATA_RULE,
)
from pretrain.errors import ConfigError, DataError, printable
from pretrain.files.untrusted_files import read_json

# after duplicates were found
_LEFT_OUT = (GUARD_RULE, PARAGRAPHS_RULE, CONTAMINATION_RULE, PERSONAL_DATA_RULE, FORGOTTEN_RULE)
_COUNTED = ("text", "source", "license", "license_evidence", "metadata")
STAGES = "stages.json"  # in work/: where the texts of the corpus are that was written last
MAX_COMPARED = 20_000  # removed documents whose text is compared with their twin's: memory is bounded


@dataclass
class Verified:
    """What `verify` counted."""

    shards: int = 0
    documents: int = 0
    characters: int = 0
    removed: int = 0  # as duplicates, each with a twin
    compared: int = 0  # of them, compared by text with the twin; needs work/
    in_base: int = 0  # of them, with a twin in the base corpus, which was not given


@dataclass
class _Pairs:
    """Removed documents and their twins, of which some are compared by their texts."""

    threshold: float | None
    twins: list[tuple[str, str]] = field(default_factory=list)  # of those removed, by id
    chosen: list[tuple[int, tuple[int, int, str, float]]] = field(default_factory=list)
    positions: dict[str, tuple[int, int]] = field(default_factory=dict)  # of the twins that are needed
    left_out: set[str] = field(default_factory=set)  # by the guard and so on, after they were twins


@dataclass
class _Totals:
    """Counts of the documents in the shards, for comparison with those of the manifest."""

    kept: Counter[str] = field(default_factory=Counter)  # by source
    licenses: dict[str, Counter[str]] = field(default_factory=dict)
    evidence: dict[str, Counter[str]] = field(default_factory=dict)
    reservations: Counter[str] = field(default_factory=Counter)

    def add(self, table: pa.Table) -> int:
        """Count the documents of a row group; return the characters of their texts."""
        sizes = 0
        for text, source, license_name, evidence, metadata in zip(
            *(table[name].to_pylist() for name in _COUNTED), strict=True
        ):
            sizes += len(text)
            self.kept[source] += 1
            for counts, name in ((self.licenses, license_name), (self.evidence, evidence)):
                counts.setdefault(name, Counter()).update(documents=1, characters=len(text))
            self.reservations.update((json.loads(metadata) if metadata else {}).get("reservations", ()))
        return sizes


def verify(folder: Path, base: Path | None = None) -> Verified:
    """Check every hash and count of a corpus again, and that each removed duplicate has a twin that is as similar.

    `base` is the corpus that it was curated against; without it twins there are only counted. Raises DataError that
    names the first file or document that is not as it was written, ConfigError for a base of another corpus.
    """
    manifest = read_manifest(folder)
    found, seen, totals = Verified(), set[str](), _Totals()
    has_copies = not manifest["settings"]["duplicates"]["exact"]  # of equal texts, which have one id
    for shard in manifest["shards"]:
        path = folder / shard["file"]
        check_shard(path, shard)
        check_shard(folder / shard["index"]["file"], shard["index"])
        documents = characters = 0
        with pq.ParquetFile(path) as file:
            for number in range(file.num_row_groups):
                table = file.read_row_group(number, ["id", *_COUNTED])
                ids = table["id"].to_pylist()
                if has_copies:
                    seen.update(ids)
                else:
                    _check_unique(path, ids, seen)
                characters += totals.add(table)
                documents += len(table)
        if (documents, characters) != (shard["documents"], shard["characters"]):
            raise _differs(path, f"{documents:,} documents of {characters:,} characters", shard["documents"])
        found.shards, found.documents = found.shards + 1, found.documents + documents
        found.characters += characters
    _check_totals(folder / MANIFEST, manifest, totals)
    _check_twins(folder, manifest, seen | _base_ids(manifest, folder, base), found, base is None)
    return found


def _check_unique(path: Path, ids: list[str], seen: set[str]) -> None:
    for identity in ids:
        if identity in seen:
            raise DataError(
                f"{printable(str(path))} has the document {identity}, which stands in the corpus before. "
                "Give the command that made the corpus again."
            )
        seen.add(identity)


def _check_totals(path: Path, manifest: Mapping[str, Any], totals: _Totals) -> None:
    kept = totals.kept
    expected = {name: source["documents"]["kept"] for name, source in manifest["sources"].items()}
    for name, count in expected.items():
        if kept.get(name, 0) != count:
            raise _differs(path, f"{kept.get(name, 0):,} documents of source {name}", count)
    counts: dict[str, dict[str, Any]] = {"licenses": _plain(totals.licenses)}
    removals = manifest.get("removals", [])
    if not removals or removals[-1].get("version", 1) > 1:  # those of version 1 left the others as they were
        counts |= {"license_evidence": _plain(totals.evidence), "reservations": dict(totals.reservations)}
    for name, count_of in counts.items():
        if count_of != manifest[name]:
            raise _differs(path, f"{name} {count_of}", manifest[name])
    check_identity(manifest["sources"])


def _plain(counts: Mapping[str, Counter[str]]) -> dict[str, dict[str, int]]:
    return {name: dict(each) for name, each in counts.items()}


def _differs(path: Path, found: str, expected: object) -> DataError:
    return DataError(f"{printable(str(path))}: the shards hold {found}, and the manifest says {expected}.")


def _base_ids(manifest: Mapping[str, Any], folder: Path, base: Path | None) -> set[str]:
    if base is None:
        return set()
    older = read_manifest(base)
    if older["fingerprint"] != manifest.get("base"):
        raise ConfigError(
            f"base={printable(str(base))} is not the corpus that {printable(str(folder))} was curated against: "
            f"its fingerprint is {older['fingerprint']}, and the manifest says {manifest.get('base')}. Leave base out, "
            "or name that corpus."
        )
    paths = [(base / shard["file"], shard) for shard in older["shards"]]
    for path, shard in paths:
        check_shard(path, shard)
    return {identity for path, _ in paths for table in row_groups(path, ["id"]) for identity in table["id"].to_pylist()}


def _check_twins(
    folder: Path, manifest: Mapping[str, Any], known: set[str], found: Verified, without_base: bool
) -> None:
    """Check what decisions/ says of duplicates; compare texts where work/ still has them."""
    settings = manifest["settings"]["duplicates"]
    pairs = _Pairs(settings["similarity"] if settings["verify"] else None)
    files = sorted((folder / "decisions").glob("*.parquet"))
    for path in files:
        _read_decisions(path, pairs)
    for removed, twin in pairs.twins:
        if twin in known or twin in pairs.left_out:
            continue
        if manifest.get("base") is None or not without_base:
            raise DataError(
                f"{printable(str(folder))}/decisions: document {removed} is the duplicate of {twin}, which is not in "
                "the corpus. Give the command that made the corpus again."
            )
        found.in_base += 1
    found.removed = len(pairs.twins)
    needed = {row[2] for _, row in pairs.chosen}
    for path in files:
        for position, row in _rows(path, ["id", "removed_by"]):
            if row["id"] in needed and row["removed_by"] in (None, *_LEFT_OUT):
                pairs.positions[row["id"]] = (int(path.stem), position)
    found.compared = _compare(folder, pairs, Shingler(int(settings["words"])))


def _rows(path: Path, columns: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    position = 0
    for table in row_groups(path, columns):
        for row in table.to_pylist():
            yield position, row
            position += 1


def _read_decisions(path: Path, pairs: _Pairs) -> None:
    for position, row in _rows(path, ["id", "removed_by", "duplicate_of", "similarity"]):
        reason, twin, similarity = row["removed_by"], row["duplicate_of"], row["similarity"]
        if reason in _LEFT_OUT:
            pairs.left_out.add(row["id"])
        if reason not in (EXACT_RULE, NEAR_RULE):
            continue
        pairs.twins.append((row["id"], twin))
        if pairs.threshold is None:
            continue
        if similarity is None or similarity < pairs.threshold:
            raise DataError(
                f"{printable(str(path))}: document {row['id']} has a similarity of {similarity} to {twin}, below "
                f"duplicates.similarity={pairs.threshold}. Give the command that made the corpus again."
            )
        if reason == NEAR_RULE:
            rank = -xxhash.xxh3_64_intdigest(row["id"].encode())
            heapq.heappush(pairs.chosen, (rank, (int(path.stem), position, twin, similarity)))
            if len(pairs.chosen) > MAX_COMPARED:
                heapq.heappop(pairs.chosen)


def _compare(folder: Path, pairs: _Pairs, shingler: Shingler) -> int:
    """Compare the texts of the chosen documents with their twins'; return how many could be."""
    try:
        stages = read_json(folder / "work" / STAGES, 1 << 28)
        read, c4 = folder / "work" / str(stages["read"]), stages["c4"]
        wanted = {(unit, position) for _, (unit, position, _, _) in pairs.chosen} | set(pairs.positions.values())
        sets = dict(_shingle_sets(read, c4, wanted, shingler))
    except FileNotFoundError:
        return 0
    compared = 0
    for _, (unit, position, twin, similarity) in pairs.chosen:
        if (there := pairs.positions.get(twin)) is None:
            continue
        true = jaccard(sets[unit, position], sets[there])
        if true != similarity:
            raise DataError(
                f"{printable(str(folder))}/decisions/{unit:05d}.parquet: row {position} has a similarity of {true} to "
                f"{twin} by its text, and {similarity} is written. Give the command that made the corpus again."
            )
        compared += 1
    return compared


def _shingle_sets(
    read: Path, c4: Mapping[str, Any], wanted: Iterable[tuple[int, int]], shingler: Shingler
) -> Iterator[tuple[tuple[int, int], Hashes]]:
    units: dict[int, set[int]] = {}
    for unit, position in wanted:
        units.setdefault(unit, set()).add(position)
    for unit, positions in sorted(units.items()):
        for position, row in _rows(file_of(read, unit, "documents.parquet"), ["text", "origin"]):
            if position in positions:
                text = written_text(row["text"], c4[row["origin"].partition("/")[0]])
                yield (unit, position), shingler.shingle_set(text)
