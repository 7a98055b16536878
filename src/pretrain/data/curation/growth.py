"""A corpus that grows: what a later curation found new goes after the documents of its base, in shards of its own.

Shards that are there never change, and the manifest is replaced at once, so that a run may read the corpus meanwhile.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from pretrain.data.curation.engine import link, storage_errors
from pretrain.data.curation.manifest import (
    DOMAINS,
    MANIFEST,
    add_all,
    check_identity,
    check_shard,
    manifest_bytes,
    read_manifest,
)
from pretrain.data.curation.output_folder import locked
from pretrain.data.curation.writing import ATTRIBUTION
from pretrain.errors import ConfigError, DataError, printable
from pretrain.files.atomic_files import sync_to_disk, write_atomically

_SUMS = ("licenses", "license_evidence", "languages", "reservations", "dates", "not_reproducible")
_SETTINGS = ("duplicates", "validation")  # on which the promises of the whole corpus rest


def appended_before(base: Path, output: Path) -> dict[str, Any] | None:
    """Return the manifest of `output` if its documents are in the base corpus already, else None."""
    if not (output / MANIFEST).exists():
        return None
    manifest = read_manifest(output)
    grown = read_manifest(base).get("grown", [])
    return manifest if manifest["fingerprint"] in [each["fingerprint"] for each in grown] else None


def check_has_not_grown(output: Path) -> None:
    """Raise DataError for a corpus that later curations have added documents to: writing it anew would lose them."""
    try:
        grown = read_manifest(output).get("grown", [])
    except DataError:  # nothing that could be lost
        return
    if grown:
        count = sum(each["documents"] for each in grown)
        raise DataError(
            f"output={printable(str(output))} has grown by {count:,} documents of {len(grown)} later curations, which "
            "writing it anew would take out. Choose another output, or delete the folder."
        )


def append(base: Path, addition: Path) -> dict[str, Any]:
    """Put the documents of a corpus after those of the one that it was curated against; return the new manifest.

    Raises CheckpointError if another process writes `base`, DataError if `base` has changed since, ConfigError if the
    two were made with settings that cannot stand in one corpus.
    """
    with locked(base):
        return _append(base, addition)


def _append(base: Path, addition: Path) -> dict[str, Any]:
    manifest, more = read_manifest(base), read_manifest(addition)
    if more["base"] != manifest["fingerprint"]:
        raise DataError(
            f"{printable(str(base))} has changed since {printable(str(addition))} was curated against it, so documents "
            "could stand in it twice. Give the command again with another output."
        )
    _check_settings(base, manifest, more)
    number = 1 + max((int(Path(shard["file"]).stem) for shard in manifest["shards"]), default=-1)
    with storage_errors(base):
        shards = [_add_shard(base, addition, shard, number + at) for at, shard in enumerate(more["shards"])]
        for name in ("data", "index"):
            sync_to_disk(base / name)
        _add_attribution(base, addition)
        data = manifest_bytes(_merged(manifest, more, shards))
        write_atomically(base / MANIFEST, data)
    return read_manifest(base)


def _check_settings(base: Path, manifest: Mapping[str, Any], more: Mapping[str, Any]) -> None:
    where = printable(str(base))
    for name in _SETTINGS:
        if manifest["settings"][name] != more["settings"][name]:
            raise ConfigError(
                f"append=true with {name}={more['settings'][name]} differs from {where}, which was curated with "
                f"{name}={manifest['settings'][name]}. Give the same, or append=false."
            )
    if "decontamination" in manifest or "decontamination" in more:
        raise ConfigError(
            f"append=true cannot join the verdicts on evaluation sets of {where} and of what is new. "
            "Try append=false, or decontaminate.sets=[]."
        )
    for key in ("kinds", "replacement"):
        old, new = (each["personal_data"][key] for each in (manifest, more))
        if old != new:
            raise ConfigError(
                f"append=true with personal_data.{key}={new} differs from {where}, which has {old}. "
                "Give the same, or append=false."
            )
    for name in manifest["sources"].keys() & more["sources"].keys():
        for key in ("license", "language"):
            old, new = (each["sources"][name][key] for each in (manifest, more))
            if old != new:
                raise ConfigError(
                    f"sources.{name}.{key}={new} differs from that of the source {name} in {where}, {old}. "
                    "Give the source another name."
                )


def _add_shard(base: Path, addition: Path, shard: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Put a shard and its index under the next number; return its entry."""
    check_shard(addition / shard["file"], shard)
    check_shard(addition / shard["index"]["file"], shard["index"])
    names = f"data/{number:05d}.parquet", f"index/{number:05d}.rows"
    for name in names:
        (base / name).unlink(missing_ok=True)  # of a start that was killed
    link(addition / shard["file"], base / names[0])
    shutil.copyfile(addition / shard["index"]["file"], base / names[1])  # `forget` writes an index in place
    sync_to_disk(base / names[1])
    return {**shard, "file": names[0], "index": {**shard["index"], "file": names[1]}}


def _add_attribution(base: Path, addition: Path) -> None:
    """Put who must be named after those of the base, in a file that replaces its own at once.

    A start that was killed before it wrote the manifest may have done so: then it stays as it is.
    """
    old, draft = base / ATTRIBUTION, base / ".attribution.tmp"
    more = (addition / ATTRIBUTION).read_bytes() if (addition / ATTRIBUTION).exists() else b""
    with draft.open("wb") as file:
        if old.exists():
            with old.open("rb") as before:
                shutil.copyfileobj(before, file)
                before.seek(max(0, before.tell() - len(more)))
                more = b"" if before.read() == more else more
        file.write(more)
    if more:
        sync_to_disk(draft)
        draft.replace(old)
    draft.unlink(missing_ok=True)


def _merged(manifest: dict[str, Any], more: Mapping[str, Any], shards: list[dict[str, Any]]) -> dict[str, Any]:
    merged = {key: value for key, value in manifest.items() if key not in ("format", "version", "seal")}
    for name in _SUMS:
        merged[name] = add_all([manifest[name], more[name]])
    merged |= {name: manifest[name] + more[name] for name in ("documents", "characters")}
    merged["sources"] = _merged_sources(manifest["sources"], more["sources"])
    domains = add_all([manifest["domains_top"], more["domains_top"]])
    merged["domains_top"] = dict(sorted(domains.items(), key=lambda item: (-item[1], item[0]))[:DOMAINS])
    merged["duplicates"] = add_all([manifest["duplicates"], more["duplicates"]])
    replaced = add_all([manifest["personal_data"]["replaced"], more["personal_data"]["replaced"]])
    merged["personal_data"] = manifest["personal_data"] | {"replaced": replaced}
    rules = {name: more["settings"][name] | manifest["settings"][name] for name in ("rules", "rules_of_languages")}
    merged["settings"] = manifest["settings"] | rules
    merged["shards"] = [*manifest["shards"], *shards]
    merged["fingerprint"] = xxhash.xxh3_128_hexdigest(f"{manifest['fingerprint']} {more['fingerprint']}".encode())
    addition = {
        "fingerprint": more["fingerprint"], "before": manifest["fingerprint"], "shards": len(shards),
        "documents": more["documents"], "made": more["made"], "settings": more["settings"],
    }  # fmt: skip
    merged["grown"] = [*manifest.get("grown", []), addition]
    check_identity(merged["sources"])
    return merged


def _merged_sources(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    merged = {}
    for name in sorted(old.keys() | new.keys()):
        each = [sources[name] for sources in (old, new) if name in sources]
        merged[name] = each[0] | {
            "files": [file for source in each for file in source["files"]],
            "documents": add_all(source["documents"] for source in each),
            "characters": sum(source["characters"] for source in each),
        }
    return merged
