"""A corpus in an object storage, curated or prepared: copied to the cache once, by its manifest, each hash checked.

The copy appears under its name when all of it has arrived. A copy that was interrupted goes on where it was.
"""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pretrain.data.config import CuratedConfig, DataConfig
from pretrain.data.prepared_config import PreparedConfig
from pretrain.data.token_store import prepared_folder
from pretrain.data.token_store.format import storage_errors
from pretrain.errors import CheckpointError, DataError, printable
from pretrain.files.locks import wait_for_lock
from pretrain.files.object_storage import RemoteFolder, is_remote
from pretrain.files.records import sha256_of

MANIFEST = "manifest.json"
Report = Callable[[str], None]
File = dict[str, Any]  # file: its path in the folder; bytes; sha256


@dataclass(frozen=True)
class _Kind:
    """What is copied."""

    noun: str
    made_by: str  # what wrote the folder
    folder: str  # of the copies, in the cache
    max_manifest_bytes: int
    files: Callable[[Path], Sequence[File]]  # of the folder with this manifest; raises DataError


def on_this_machine(data: DataConfig, cache: Path, report: Report) -> DataConfig:
    """Return the settings of a source with the copy's folder as path, if it is a corpus in an object storage.

    Raises DataError as `local_corpus`.
    """
    if isinstance(data, CuratedConfig) and is_remote(data.path):
        return replace(data, path=str(local_corpus(data.path, cache, report)))
    if isinstance(data, PreparedConfig) and is_remote(data.path):
        return replace(data, path=str(local_stores(data.path, cache, report)))
    return data


def local_corpus(url: str, cache: Path, report: Report = lambda line: None) -> Path:
    """Return a folder of the cache with the curated corpus at an address, as its manifest is now.

    Of several processes one copies, and the others wait. Raises DataError for a corpus that is unfinished or damaged,
    CheckpointError where storage or disk fail.
    """
    from pretrain.data.curation.manifest import MAX_MANIFEST_BYTES, read_manifest  # loads pyarrow

    kind = _Kind(
        "corpus", "a curation", "corpora", MAX_MANIFEST_BYTES, lambda folder: list(read_manifest(folder)["shards"])
    )
    return _local_copy(url, kind, cache, report)


def local_stores(url: str, cache: Path, report: Report = lambda line: None) -> Path:
    """Return a folder of the cache with the prepared token stores at an address; otherwise as `local_corpus`."""

    def files(folder: Path) -> list[File]:
        return [asdict(entry) for entry in prepared_folder.read_prepared(folder).files]

    limit = prepared_folder.MAX_MANIFEST_BYTES
    kind = _Kind("folder of token stores", "prepare.py output=<folder>", "stores", limit, files)
    return _local_copy(url, kind, cache, report)


def _local_copy(url: str, kind: _Kind, cache: Path, report: Report) -> Path:
    """Return the copy of a folder at an address, which is made unless it is there."""
    remote = RemoteFolder(url)
    try:
        data = remote.read(MANIFEST, kind.max_manifest_bytes)
    except FileNotFoundError:
        raise DataError(
            f"data.path={printable(url)} is no finished {kind.noun}: it has no {MANIFEST}. Copy the output of "
            f"{kind.made_by} there, the manifest last: aws s3 cp --recursive --exclude {MANIFEST} <folder> "
            f"s3://bucket/corpus, then aws s3 cp <folder>/{MANIFEST} s3://bucket/corpus/."
        ) from None
    except ValueError as error:
        raise DataError(f"data.path={printable(url)} is no {kind.noun}: of {MANIFEST}, {error}.") from None
    name = hashlib.sha256(remote.url.encode()).hexdigest()[:16] + "-" + hashlib.sha256(data).hexdigest()[:16]
    folder = cache / "remote" / kind.folder / name
    if folder.is_dir():
        return folder
    with storage_errors(cache), wait_for_lock(folder.with_name(f"{name}.lock")):
        if folder.is_dir():  # another process has copied it in the meantime
            return folder
        draft = folder.with_name(f"{name}.tmp")
        draft.mkdir(parents=True, exist_ok=True)
        (draft / MANIFEST).write_bytes(data)
        try:
            files = kind.files(draft)
        except DataError as error:
            raise DataError(f"data.path={printable(url)} cannot be read: {error}") from None
        _copy(remote, draft, files, report)
        draft.rename(folder)
    return folder


def _copy(remote: RemoteFolder, draft: Path, files: Sequence[File], report: Report) -> None:
    """Copy the files that the draft does not have yet, and compare each with the manifest."""
    missing = [file for file in files if not _is_there(draft, file)]
    size, free = sum(file["bytes"] for file in missing), shutil.disk_usage(draft).free
    if free < size:
        raise CheckpointError(
            f"the corpus {printable(remote.url)} has {size / 2**20:,.1f} MiB that are not here yet, and "
            f"{free / 2**20:,.1f} MiB are free below {draft.parent}. Free some, or choose another disk: "
            "paths.cache_dir=<folder>."
        )
    report(f"copying {len(missing):,} files of {printable(remote.url)}, {size / 2**20:,.1f} MiB ...")
    for file in missing:
        path = draft / file["file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            remote.download(file["file"], path)
        except FileNotFoundError as error:
            raise DataError(
                f"data.path={printable(remote.url)} is damaged: {error}, and the manifest lists it. "
                "Copy it there again."
            ) from None
        if not _is_there(draft, file):
            path.unlink(missing_ok=True)
            raise DataError(
                f"data.path={printable(remote.url)} is damaged: size or sha256 of {file['file']} is not that of the "
                "manifest. Copy it there again."
            )


def _is_there(draft: Path, file: File) -> bool:
    """Return whether a file is whole, as an interrupted copy may have left it."""
    path = draft / file["file"]
    return path.is_file() and path.stat().st_size == file["bytes"] and sha256_of(path) == file["sha256"]
