"""A curated corpus in an object storage: copied to the cache once, by its manifest, with the hash of every shard.

The copy appears under its name when all of it has arrived. A copy that was interrupted goes on where it was.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pretrain.data.config import CuratedConfig, DataConfig
from pretrain.errors import CheckpointError, DataError, printable
from pretrain.files.object_storage import RemoteFolder, is_remote
from pretrain.files.untrusted_files import open_own


def on_this_machine(data: DataConfig, cache: Path, report: Callable[[str], None]) -> DataConfig:
    """Return the settings of a source with the copy's folder as path, if it is a corpus in an object storage.

    Raises DataError as `local_corpus`.
    """
    if isinstance(data, CuratedConfig) and is_remote(data.path):
        return replace(data, path=str(local_corpus(data.path, cache, report)))
    return data


def local_corpus(url: str, cache: Path, report: Callable[[str], None] = lambda line: None) -> Path:
    """Return a folder of the cache with the corpus at an address, as its manifest is now.

    Of several processes one copies, and the others wait. Raises DataError for a corpus that is unfinished or damaged,
    CheckpointError where storage or disk fail.
    """
    from pretrain.data.curation.manifest import MANIFEST, MAX_MANIFEST_BYTES, read_manifest  # loads pyarrow

    remote = RemoteFolder(url)
    try:
        data = remote.read(MANIFEST, MAX_MANIFEST_BYTES)
    except FileNotFoundError:
        raise DataError(
            f"data.path={printable(url)} is no finished corpus: it has no {MANIFEST}. Copy the output of a curation "
            "there, the manifest last: aws s3 cp --recursive --exclude manifest.json <corpus> s3://bucket/corpus, then "
            "aws s3 cp <corpus>/manifest.json s3://bucket/corpus/."
        ) from None
    except ValueError as error:
        raise DataError(f"data.path={printable(url)} is no corpus: of {MANIFEST}, {error}.") from None
    name = hashlib.sha256(remote.url.encode()).hexdigest()[:16] + "-" + hashlib.sha256(data).hexdigest()[:16]
    folder = cache / "remote" / "corpora" / name
    if folder.is_dir():
        return folder
    with _storage_of_copies(folder), _locked(folder.with_name(f"{name}.lock")):
        if folder.is_dir():  # another process has copied it in the meantime
            return folder
        draft = folder.with_name(f"{name}.tmp")
        (draft / "data").mkdir(parents=True, exist_ok=True)
        (draft / MANIFEST).write_bytes(data)
        try:
            shards = read_manifest(draft)["shards"]
        except DataError as error:
            raise DataError(f"data.path={printable(url)} cannot be read: {error}") from None
        _copy(remote, draft, shards, report)
        draft.rename(folder)
    return folder


def _copy(remote: RemoteFolder, draft: Path, shards: list[dict[str, Any]], report: Callable[[str], None]) -> None:
    """Copy the shards that the draft does not have yet, and compare each with the manifest."""
    from pretrain.data.curation.manifest import check_shard

    missing = [shard for shard in shards if not _is_there(draft, shard)]
    size, free = sum(shard["bytes"] for shard in missing), shutil.disk_usage(draft).free
    if free < size:
        raise CheckpointError(
            f"the corpus {printable(remote.url)} has {size / 2**20:,.1f} MiB that are not here yet, and "
            f"{free / 2**20:,.1f} MiB are free below {draft.parent}. Free some, or choose another disk: "
            "paths.cache_dir=<folder>."
        )
    report(f"copying {len(missing):,} shards of {printable(remote.url)}, {size / 2**20:,.1f} MiB ...")
    for shard in missing:
        try:
            remote.download(shard["file"], draft / shard["file"])
            check_shard(draft / shard["file"], shard)
        except FileNotFoundError as error:
            raise DataError(
                f"data.path={printable(remote.url)} is damaged: {error}, and the manifest lists it. "
                "Copy it there again."
            ) from None
        except DataError:
            (draft / shard["file"]).unlink(missing_ok=True)
            raise DataError(
                f"data.path={printable(remote.url)} is damaged: size or sha256 of {shard['file']} is not that of the "
                "manifest. Copy it there again."
            ) from None


def _is_there(draft: Path, shard: dict[str, Any]) -> bool:
    """Return whether an interrupted copy has left a shard whole."""
    from pretrain.data.curation.manifest import check_shard

    if not (draft / shard["file"]).is_file():
        return False
    try:
        check_shard(draft / shard["file"], shard)
    except DataError:
        return False
    return True


@contextmanager
def _storage_of_copies(folder: Path) -> Iterator[None]:
    """Raise CheckpointError that names the setting if the cache cannot be written to."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{printable(folder)} cannot be written: {error}. Try another paths.cache_dir=<folder>."
        ) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let the processes of this machine copy a corpus one after the other."""
    descriptor = open_own(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
