"""The last step of a curation: the files of the last stage become the corpus, its manifest last."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import xxhash

from pretrain.data.curation.engine import done_record, file_of, number_of_tasks
from pretrain.data.curation.manifest import ITEMS, MANIFEST, manifest_bytes
from pretrain.data.curation.stages import RowGroups, row_groups
from pretrain.data.curation.writing import SAMPLES
from pretrain.files.atomic_files import sync_to_disk, write_atomically


def publish(
    folder: Path, output: Path, contents: dict[str, Any], verdicts: Path | None, samples_per_rule: int
) -> dict[str, Any]:
    """Put the files of the stage in `folder` into the output folder, the manifest last; return the manifest.

    `verdicts` is the folder of the stage that compared the corpus with evaluation sets. OSErrors are the caller's.
    """
    count = number_of_tasks(folder)
    shards, digest = _link_shards(folder, output, count)
    _write_samples(folder, output, count, samples_per_rule)
    (output / ITEMS).unlink(missing_ok=True)
    if verdicts is not None:
        _link(file_of(verdicts, 0, "items.parquet"), output / ITEMS)
    _write_attribution(folder, output, count)
    for name in ("data", "decisions", "index"):
        sync_to_disk(output / name)
    data = manifest_bytes({"fingerprint": digest, **contents, "shards": shards})
    write_atomically(output / MANIFEST, data)
    manifest: dict[str, Any] = json.loads(data)
    return manifest


def _link_shards(folder: Path, output: Path, count: int) -> tuple[list[dict[str, Any]], str]:
    """Return the manifest's records of the shards, and the fingerprint of all documents in them."""
    shards, digest = [], xxhash.xxh3_128()
    for name in ("data", "decisions", "index"):
        shutil.rmtree(output / name, ignore_errors=True)
        (output / name).mkdir()
    for index in range(count):
        record = done_record(folder, index)
        assert record is not None
        _link(file_of(folder, index, "decisions.parquet"), output / "decisions" / f"{index:05d}.parquet")
        digest.update(file_of(folder, index, "digests").read_bytes())
        if documents := record["counts"].get("documents", 0):
            name = f"data/{index:05d}.parquet"
            _link(file_of(folder, index, "shard.parquet"), output / name)
            index_name = f"index/{index:05d}.rows"
            _link(file_of(folder, index, "index.rows"), output / index_name)
            sizes = {"documents": documents, "characters": record["counts"]["characters"]}
            sizes["index"] = {"file": index_name, **record["files"]["index.rows"]}
            shards.append({"file": name, **record["files"]["shard.parquet"], **sizes})
    return shards, digest.hexdigest()


def _write_samples(folder: Path, output: Path, count: int, samples_per_rule: int) -> None:
    rows: dict[str, list[dict[str, Any]]] = {}
    for index in range(count):
        for table in row_groups(file_of(folder, index, "samples.parquet")):
            for row in table.to_pylist():
                rows.setdefault(row["rule"], []).append(row)
        for rule, found in rows.items():
            found.sort(key=lambda row: row["rank"])
            del rows[rule][samples_per_rule:]
    chosen = [row for rule in sorted(rows) for row in rows[rule]]
    draft = output / ".samples.tmp"
    with RowGroups(draft, SAMPLES) as written:
        written.write({name: [row[name] for row in chosen] for name in SAMPLES.names})
    draft.replace(output / "samples.parquet")


def _write_attribution(folder: Path, output: Path, count: int) -> None:
    """Write who must be named: frames of zstd one behind the other are one file."""
    draft = output / ".attribution.tmp"
    with draft.open("wb") as written:
        for index in range(count):
            with file_of(folder, index, "attribution.jsonl.zst").open("rb") as frame:
                shutil.copyfileobj(frame, written)
        size = written.tell()
    target = output / "ATTRIBUTION.jsonl.zst"
    target.unlink(missing_ok=True)
    if size:
        draft.replace(target)
    draft.unlink(missing_ok=True)


def _link(source: Path, target: Path) -> None:
    """Give a file of work/ a second name, or copy it where the disk has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
