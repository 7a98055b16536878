"""Recompute the hashes of a changed file, as an attacker with write access would."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from pretrain.data.token_store.format import fingerprint_of
from pretrain.files.records import SEAL, sealed

_LISTS = ("manifest.json", "plan.json")


def sign_again(path: Path) -> None:
    """Put the file's size and hash where its folder's list of files has them, and the list's own hashes into it."""
    listing = next((each / name for each in path.parents[:2] for name in _LISTS if (each / name).is_file()), None)
    if listing is None or not path.is_file() or path.is_symlink() or listing.is_symlink():
        return
    with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        record = json.loads(listing.read_text())
        if path != listing:
            _enter(record, path, listing.parent)
        if "fingerprint" in record:
            record["fingerprint"] = fingerprint_of(record)
        listing.write_text(json.dumps(sealed(record) if SEAL in record else record))


def _enter(record: dict[str, Any], path: Path, folder: Path) -> None:
    size, sha256 = path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
    name = str(path.relative_to(folder))
    if "shards" in record and path.parent.name == "shards":
        stem, suffix = path.name.split(".")
        files = next(shard["files"] for shard in record["shards"] if shard["stem"] == stem)
        files[suffix] = {"bytes": size, "sha256": sha256}  # without hashes of pieces, as older stores have it
    elif isinstance(record.get("sha256"), dict):
        record["sha256"][path.stem] = sha256
    elif isinstance(record.get("annotations"), dict):
        record["annotations"]["sha256"] = sha256
    else:
        record["files"][name] |= {"bytes": size, "sha256": sha256}
