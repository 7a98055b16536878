"""A curated corpus whose documents count as older, and the index by which the next one finds its duplicates.

index/00012.rows holds for each document of data/00012.parquet, in its order, the key of its text and the keys of its
bands; the manifest names what they were made with. The documents of a base corpus have numbers after those of all
units: its shards are further tasks of the stages that compare documents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pretrain.data.curation.config import DuplicatesConfig
from pretrain.data.curation.engine import Counts, Task
from pretrain.data.curation.manifest import check_shard, read_manifest
from pretrain.data.curation.near_duplicates.minhash import check_index, index_parameters
from pretrain.data.curation.near_duplicates.shuffle_files import Rows, map_partition, partitions_of_keys, write_rows
from pretrain.data.curation.reading import EVIDENCE
from pretrain.data.curation.row_groups import row_groups
from pretrain.data.curation.stages import EXACT, halves
from pretrain.errors import ConfigError, DataError, printable
from pretrain.files.records import sha256_of

BASE_VERSION = 1
OLDER = 1 << 62  # priority of the base corpus's documents among equal texts
CLUSTER = np.dtype([("cluster", "<u8", (2,))])


@dataclass(frozen=True)
class Base:
    """The corpus that counts as older: nothing of it is ever written."""

    path: str
    fingerprint: str
    shards: list[dict[str, Any]] = field(default_factory=list)
    bands: int = 0  # of its index: those of its own settings, whether the new corpus looks for near-duplicates or not

    @property
    def documents(self) -> int:
        """Documents of all shards."""
        return sum(shard["documents"] for shard in self.shards)

    def record(self) -> dict[str, Any]:
        """Return where the shards are, and what is in them, as plain JSON for the settings of a stage."""
        return {"path": self.path, "shards": self.shards}


def index_dtype(bands: int) -> np.dtype[np.void]:
    """Return the row of an index with so many bands; 0 without near-duplicates."""
    return np.dtype([("key", "<u8", (2,)), ("bands", "<u8", (bands,))])


def index_record(config: DuplicatesConfig) -> dict[str, Any]:
    """Return what the manifest says of an index: all that its keys depend on."""
    return {"near": config.near, **(index_parameters(config) if config.near else {})}


def open_base(path: str | None, output: Path, config: DuplicatesConfig) -> Base:
    """Return the base corpus, one without shards for None.

    Raises ConfigError if its band keys do not fit the settings, or it is the output; DataError if it is no finished
    corpus.
    """
    if path is None:
        return Base("", "")
    folder = Path(path).expanduser().resolve()
    if folder == output.resolve():
        raise ConfigError(
            f"base={printable(path)} is the output too, and a base corpus is never written. Try output={output.name}-2."
        )
    manifest = read_manifest(folder)
    name, index = printable(str(folder / "manifest.json")), manifest.get("index")
    if not isinstance(index, Mapping):
        raise DataError(f"{name} names no index, by which duplicates are found. Curate the base corpus again.")
    if config.near and not index.get("near"):
        raise ConfigError(
            f"duplicates.near=true needs band keys, and base={printable(path)} was curated with "
            "duplicates.near=false. Try duplicates.near=false, or curate the base corpus again."
        )
    if config.near:
        check_index(index, config, name)
    bands = int(index["bands"]) if index.get("near") else 0
    return Base(str(folder), str(manifest["fingerprint"]), manifest["shards"], bands)


def read_base(task: Task) -> Counts:
    """Check a shard of the base corpus and its index; write the keys of its texts for `exact`, and its clusters."""
    shard, number = task.settings["shards"][task.index], task.settings["first"] + task.index
    path = Path(task.settings["path"])
    check_shard(path / shard["file"], shard)
    index = index_of(path, shard, task.settings["bands"])
    columns = ["id", "cluster", "characters"]
    tables = list(row_groups(path / shard["file"], columns))
    table = pa.concat_tables(tables)
    rows = np.zeros(len(index), EXACT)
    rows["key"] = index["key"]
    rows["id"] = _numbers(table["id"])
    rows["priority"], rows["preference"] = OLDER, table["characters"].to_numpy()
    rows["evidence"] = len(EVIDENCE) - 1
    rows["document"] = (np.uint64(number) << np.uint64(32)) + np.arange(len(rows), dtype=np.uint64)
    partitions = int(task.settings["partitions"])
    write_rows(task.output("exact.rows"), rows, partitions_of_keys(rows["key"][:, 0], partitions), partitions)
    clusters = np.zeros(len(rows), CLUSTER)
    clusters["cluster"] = _numbers(table["cluster"])
    write_rows(task.output("clusters.rows"), clusters, np.zeros(len(rows), np.int64), 1)
    return {"documents": len(rows)}


def _numbers(identities: pa.ChunkedArray) -> Any:
    return halves([bytes.fromhex(identity) for identity in identities.to_pylist()])


def index_of(folder: Path, shard: Mapping[str, Any], bands: int) -> Rows:
    """Return the index of a shard, with `bands` of the corpus; DataError if it is not the one that was written."""
    path = folder / str(shard["index"]["file"])
    check_shard(path, shard["index"])
    rows = map_partition(path, 0, index_dtype(bands))
    if len(rows) != shard["documents"]:
        raise DataError(
            f"{printable(str(path))} has {len(rows):,} rows for {shard['documents']:,} documents. "
            "Give the command that made the corpus again."
        )
    return rows


def base_texts(record: Mapping[str, Any], shard: int) -> Iterator[pa.Table]:
    """Yield the row groups of a shard of the base corpus: text, source and language."""
    path = Path(record["path"]) / record["shards"][shard]["file"]
    yield from row_groups(path, ["text", "source", "language"])


def file_entry(path: Path) -> dict[str, Any]:
    """Return size and sha256 of a file."""
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
