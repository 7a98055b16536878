"""Take documents out of a corpus: from shards, samples and work/, and from every later curation.

First `forgetting.json` says what is to go, by hashes; then each file is written anew; the manifest comes last. After a
kill, the next start goes on from there. Weights of models do not change: who read the documents is another question.
"""

from __future__ import annotations

import io
import json
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
import zstandard

from pretrain.data.curation.base_corpus import file_entry, index_dtype
from pretrain.data.curation.corpus_statistics import row_groups_of
from pretrain.data.curation.engine import storage_errors
from pretrain.data.curation.manifest import DOMAINS, MANIFEST, manifest_bytes, read_manifest
from pretrain.data.curation.near_duplicates.shuffle_files import map_partition, write_rows
from pretrain.data.curation.rules import EXACT_RULE, FORGOTTEN_RULE, NEAR_RULE
from pretrain.data.curation.statistics import text_key
from pretrain.data.curation.tombstones import Tombstones, domain_of, hashed, read_tombstones
from pretrain.data.curation.writing import ATTRIBUTION, Written, count_documents
from pretrain.errors import ConfigError, DataError, printable
from pretrain.files.atomic_files import sync_to_disk, write_atomically
from pretrain.files.untrusted_files import read_json
from pretrain.program import command

PENDING = "forgetting.json"
REMOVAL_VERSION = 2  # of the record of a removal; before, evidence of licenses and reservations were not counted again


@dataclass(frozen=True)
class Request:
    """Which documents to forget; one field is set, or none for those that were forgotten before."""

    id: str | None = None  # or its beginning, of 8 digits or more
    url: str | None = None
    domain: str | None = None  # and those below it
    text: str | None = None  # all of it
    file: str | None = None  # <source>/<file>, or an origin: that with its line or byte

    def __bool__(self) -> bool:
        return any(value is not None for value in vars(self).values())

    def __str__(self) -> str:
        name, value = next((name, value) for name, value in vars(self).items() if value is not None)
        return f"{name}={printable(value, one_line=True)[:200]}"

    def tombstones(self) -> Tombstones:
        """Return what later curations leave out whatever this corpus holds."""
        return Tombstones(
            urls=frozenset([hashed(self.url)] if self.url else []),
            domains=frozenset([hashed(self.domain.lower())] if self.domain else []),
        )

    def wants(self, identity: str, url: str | None, origin: str) -> bool:
        """Return whether a document is one of those."""
        if self.id is not None:
            return identity.startswith(self.id.lower())
        if self.url is not None:
            return url == self.url
        if self.domain is not None:
            return f".{domain_of(url)}".endswith(f".{self.domain.lower()}")
        if self.text is not None:
            return identity in (text_key(self.text).hex(), text_key(f"{self.text}\n").hex())
        return self.file in (origin, origin.rpartition(":")[0])


@dataclass
class Found:
    """Documents of a corpus that are to be forgotten."""

    kept: dict[str, str] = field(default_factory=dict)  # origin by id, of those in the corpus
    removed: set[str] = field(default_factory=set)  # ids of texts that were removed before, or are copies of those

    @property
    def ids(self) -> frozenset[str]:
        """All ids."""
        return frozenset(self.kept) | self.removed


def find_documents(folder: Path, request: Request) -> Found:
    """Return the documents that a request means, with the duplicates that were removed in favor of them.

    Raises ConfigError if there is none, DataError if the folder holds no sound corpus.
    """
    read_manifest(folder)
    found = Found()
    for row in _rows(folder, "data/*.parquet", ["id", "url", "origin"]):
        if request.wants(row["id"], row["url"], row["origin"]):
            found.kept[row["id"]] = row["origin"]
    for row in _rows(folder, "work/read-*/*.documents.parquet", ["id", "url", "origin"]):  # all addresses
        if request.wants(row["id"].hex(), row["url"], row["origin"]):
            found.removed.add(row["id"].hex())
    for row in _rows(folder, "decisions/*.parquet", ["id", "origin", "removed_by", "duplicate_of"]):
        is_twin = row["removed_by"] in (EXACT_RULE, NEAR_RULE) and row["duplicate_of"] in found.kept
        is_new = row["removed_by"] != FORGOTTEN_RULE
        if is_twin or (is_new and request.wants(row["id"], None, row["origin"])):
            found.removed.add(row["id"])
    found.removed -= found.kept.keys()
    if not found.ids:
        raise ConfigError(
            f"{request} is no document of {printable(str(folder))}. Ids, addresses and origins are in its data/. A "
            "domain is a host such as example.org, a file is <source>/<file>, a text must be the whole text. Tokens of "
            f"what was forgotten before are deleted by {command('forget')} "
            f"{shlex.quote(f'path={printable(str(folder))}')} delete_stores=true alone."
        )
    return found


def forgotten_before(folder: Path) -> Found:
    """Return the documents that a corpus was asked to forget, which it no longer holds.

    Raises ConfigError if there is none, DataError if the folder holds no sound corpus.
    """
    read_manifest(folder)
    found = Found(removed=set(read_tombstones([folder]).texts))
    if not found.ids:
        raise ConfigError(
            f"{printable(str(folder))} has forgotten no document. Say which: domain=example.org dry_run=true."
        )
    return found


def fingerprints_of(folder: Path) -> frozenset[str]:
    """Return the fingerprint of a corpus, and those that it had before it grew or documents were forgotten."""
    manifest = read_manifest(folder)
    before = [removal["before"] for removal in manifest.get("removals", [])]
    before += [each["fingerprint"] for each in manifest.get("grown", [])]
    return frozenset([manifest["fingerprint"], *before])


def _rows(folder: Path, pattern: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob(pattern)):
        for table in row_groups_of(path, columns):
            yield from table.to_pylist()


def forget(folder: Path, found: Found, tombstones: Tombstones) -> None:
    """Take documents out of a corpus, and have later curations leave them out.

    Raises DataError for a damaged corpus, CheckpointError if it cannot be written.
    """
    with storage_errors(folder):
        already = read_tombstones([folder])
        (already | tombstones | Tombstones(texts=found.ids)).write(folder)
        write_atomically(folder / PENDING, json.dumps(sorted(found.ids)).encode())
    finish_forgetting(folder)


def finish_forgetting(folder: Path) -> bool:
    """Do what `forgetting.json` says, and delete it; return whether there was any."""
    if not (folder / PENDING).exists():
        return False
    ids = frozenset(map(str, read_json(folder / PENDING, 1 << 30)))
    manifest = read_manifest(folder)
    with storage_errors(folder):
        shards = [shard for shard in manifest["shards"] if _rewrite_shard(folder, manifest, shard, ids)]
        for path in sorted((folder / "decisions").glob("*.parquet")):
            _rewrite(path, lambda table: _with_reason(table, ids))
        if (folder / "samples.parquet").exists():
            _rewrite(folder / "samples.parquet", lambda table: _without(table, ids))
        _rewrite_attribution(folder / ATTRIBUTION, ids)
        _clear_work(folder / "work")
        (folder / "report.html").unlink(missing_ok=True)  # it shows samples
        _write_manifest(folder, manifest, shards, ids)
        (folder / PENDING).unlink()
        sync_to_disk(folder)
    return True


def _without(table: pa.Table, ids: frozenset[str]) -> pa.Table:
    return table.filter(pa.array([identity not in ids for identity in table["id"].to_pylist()], pa.bool_()))


def _with_reason(table: pa.Table, ids: frozenset[str]) -> pa.Table:
    reasons = [
        FORGOTTEN_RULE if identity in ids and reason is None else reason
        for identity, reason in zip(table["id"].to_pylist(), table["removed_by"].to_pylist(), strict=True)
    ]
    position = table.schema.get_field_index("removed_by")
    return table.set_column(position, "removed_by", pa.array(reasons, pa.string()))


def _rewrite(path: Path, change: Any) -> bool:
    """Write a file of row groups anew where that changes it; return whether it holds any row."""
    with pq.ParquetFile(path) as file:
        tables = [file.read_row_group(number) for number in range(file.num_row_groups)]
        changed = [change(table) for table in tables]
        if any(not new.equals(old) for new, old in zip(changed, tables, strict=True)):
            draft = path.with_name(f".{path.name}.tmp")
            with pq.ParquetWriter(draft, file.schema_arrow, compression="zstd", compression_level=3) as writer:
                for table in changed:
                    if len(table):
                        writer.write_table(table, row_group_size=len(table))
            sync_to_disk(draft)
            draft.replace(path)
    return any(map(len, changed))


def _rewrite_shard(folder: Path, manifest: dict[str, Any], shard: dict[str, Any], ids: frozenset[str]) -> bool:
    """Take documents out of a shard and its index, and correct its entry; return whether any is left."""
    path, index_path, record = folder / shard["file"], folder / shard["index"]["file"], manifest["index"]
    if not path.exists():  # an earlier start took out its last document
        index_path.unlink(missing_ok=True)
        return False
    dtype = index_dtype(int(record["bands"]) if record["near"] else 0)
    rows = np.array(map_partition(index_path, 0, dtype))
    columns = [table["id"].to_pylist() for table in row_groups_of(path, ["id"])]
    stays = np.array([identity not in ids for column in columns for identity in column], bool)
    if len(rows) == len(stays) and not stays.all():  # the index first: it is known by the length of the shard
        write_rows(index_path, rows[stays], np.zeros(int(stays.sum()), np.int64), 1)
    if not _rewrite(path, lambda table: _without(table, ids)):
        path.unlink()
        index_path.unlink()
        return False
    sizes = [len(text) for table in row_groups_of(path, ["text"]) for text in table["text"].to_pylist()]
    shard |= {**file_entry(path), "documents": len(sizes), "characters": sum(sizes)}
    shard["index"] |= file_entry(index_path)
    return True


def _rewrite_attribution(path: Path, ids: frozenset[str]) -> None:
    if not path.exists():
        return
    draft = path.with_name(".attribution.tmp")
    with path.open("rb") as source, draft.open("wb") as target:
        reader = zstandard.ZstdDecompressor().stream_reader(source, read_across_frames=True)
        with zstandard.ZstdCompressor(level=3).stream_writer(target, closefd=False) as writer:
            for line in io.BufferedReader(reader):
                if json.loads(line)["id"] not in ids:
                    writer.write(line)
    draft.replace(path)


def _clear_work(work: Path) -> None:
    """Delete the stages, which hold every text; the lock stays."""
    for path in work.glob("*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != "lock":
            path.unlink()


def _write_manifest(folder: Path, manifest: dict[str, Any], shards: list[dict[str, Any]], ids: frozenset[str]) -> None:
    """Count the corpus again, and write its manifest; the old one stays as manifest-<n>.json."""
    total, kept, characters = Written(), Counter[str](), Counter[str]()
    digest = xxhash.xxh3_128()
    for columns in _columns(folder, shards):
        count_documents(columns, total, None)
        kept.update(columns["source"])
        for source, size in zip(columns["source"], columns["characters"], strict=True):
            characters[source] += size
    if not kept:
        raise DataError(f"{printable(str(folder))} has no document left. Delete the folder.")
    digest.update(bytes(total.digests))
    for name, source in manifest["sources"].items():
        counts = source["documents"]
        gone = counts["kept"] - kept[name]
        counts |= {"kept": kept[name], FORGOTTEN_RULE: counts.get(FORGOTTEN_RULE, 0) + gone}
        source["characters"] = characters[name]
    domains = sorted(total.domains.items(), key=lambda item: (-item[1], item[0]))
    removal = {
        "when": datetime.now(UTC).date().isoformat(), "documents": manifest["documents"] - kept.total(),
        "ids_hash": xxhash.xxh3_128_hexdigest("".join(sorted(ids)).encode()), "before": manifest["fingerprint"],
        "version": REMOVAL_VERSION,
    }  # fmt: skip
    changed = manifest | {
        "fingerprint": digest.hexdigest(), "documents": kept.total(), "characters": characters.total(),
        "licenses": _sorted(total.licenses), "languages": _sorted(total.languages),
        "license_evidence": _sorted(total.evidence), "reservations": dict(sorted(total.reservations.items())),
        "domains_top": dict(domains[:DOMAINS]), "dates": dict(sorted(total.years.items())), "shards": shards,
        "removals": [*manifest.get("removals", []), removal],
    }  # fmt: skip
    sizes = sorted(total.clusters.items(), key=lambda item: int(item[0].partition("-")[0]))
    changed["duplicates"] = manifest["duplicates"] | {"clusters": dict(sizes)}
    number = 1 + len(manifest.get("removals", []))
    old = (folder / MANIFEST).read_bytes()
    write_atomically(folder / f"manifest-{number}.json", old)
    for name in ("format", "version", "seal"):
        changed.pop(name, None)
    write_atomically(folder / MANIFEST, manifest_bytes(changed))


def _columns(folder: Path, shards: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for shard in shards:
        for table in row_groups_of(folder / shard["file"]):
            yield table.to_pydict()


def _sorted(counts: dict[str, Counter[str]]) -> dict[str, dict[str, int]]:
    return {name: dict(sorted(each.items())) for name, each in sorted(counts.items())}
