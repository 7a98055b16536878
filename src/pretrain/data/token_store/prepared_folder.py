"""A folder of finished token stores with their tokenizer, which is read on any machine without the text.

    train/, validation/   token stores; see format.py
    tokenizer/            the tokenizer of their ids
    done.json             the counts of documents
    manifest.json         size and sha256 of each of these files, and a hash of itself; written last

While it is written, the folder has a file .unfinished: the call that was interrupted writes it anew.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pretrain import __version__
from pretrain.data.token_store.store import Store
from pretrain.errors import CheckpointError, ConfigError, DataError, printable
from pretrain.files.atomic_files import sync_to_disk, write_atomically
from pretrain.files.locks import try_lock
from pretrain.files.records import (
    SEAL,
    AtLeast,
    Count,
    check_format,
    check_seal,
    read_record,
    sealed,
    sha256_of,
    shortened,
)
from pretrain.files.untrusted_files import read_json

FORMAT, VERSION = "pretrain prepared corpus", 1
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 64_000_000
_UNFINISHED = ".unfinished"
_PARTS = ("train", "validation", "tokenizer", "done.json")  # of a folder of the cache, which may hold more
_FILE = re.compile(
    r"(train|validation)/(manifest\.json|annotations\.bin|targets\.bin|shards/[A-Za-z0-9][A-Za-z0-9_-]{0,99}\.(tok|idx|names))"
    r"|tokenizer/[a-z_]{1,40}\.(json|jinja)|done\.json"
)


@dataclass(frozen=True)
class PreparedFile:
    """A file of a prepared folder."""

    file: str  # its path in the folder
    bytes: Count
    sha256: str


@dataclass(frozen=True)
class PreparedManifest:
    """What a prepared folder holds."""

    fingerprint: str  # of the training store
    tokenizer_fingerprint: str
    vocab_size: Annotated[int, AtLeast(1)]
    n_tokens: Count  # to train on
    validation_fraction: float  # with which the documents were split
    made_by: str  # version of this package
    files: list[PreparedFile]


def write_prepared(output: Path, stores: Path, validation_fraction: float) -> PreparedManifest:
    """Write finished stores, a folder of the cache, to `output`, as links where the disk has them; return the manifest.

    A folder that holds the same already stays as it is, and an unfinished one is written anew. Raises ConfigError for a
    folder with anything else in it, CheckpointError if the disk fails or another process is writing there.
    """
    with _storage(output), _locked(output):
        if (output / MANIFEST).exists() or not _is_to_be_written(output):
            found = _same(output, Store(stores / "train"), validation_fraction)
            (output / _UNFINISHED).unlink(missing_ok=True)
            return found
        _clear(output)
        files = [path for part in _PARTS for path in _files_below(stores / part)]
        files = [path for path in files if _FILE.fullmatch(path.relative_to(stores).as_posix())]  # no plans of rows
        for path in files:
            _link(path, output / path.relative_to(stores))
        store = Store(output / "train")
        manifest = PreparedManifest(
            fingerprint=store.fingerprint,
            tokenizer_fingerprint=store.tokenizer_fingerprint,
            vocab_size=store.vocab_size,
            n_tokens=store.n_tokens,
            validation_fraction=validation_fraction,
            made_by=__version__,
            files=[_entry(output, output / path.relative_to(stores)) for path in files],
        )
        record = sealed({"format": FORMAT, "version": VERSION, **asdict(manifest)})
        write_atomically(output / MANIFEST, json.dumps(record, indent=1).encode())
        (output / _UNFINISHED).unlink()
        return manifest


def read_prepared(folder: Path) -> PreparedManifest:
    """Return the manifest of a prepared folder; DataError if it has none, or one that was edited or damaged."""
    path = folder / MANIFEST
    try:
        manifest = read_json(path, MAX_MANIFEST_BYTES)
        check_format(manifest, FORMAT, VERSION, "Prepare the text again with this release")
        if SEAL not in manifest:
            raise ValueError(f"it has no {SEAL}")
        check_seal(manifest, str(path))
        found = read_record(PreparedManifest, manifest, str(path))
        for entry in found.files:
            if not _FILE.fullmatch(entry.file):
                raise ValueError(f"it lists {shortened(entry.file)}, which is no file of such a folder")
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{printable(str(folder))} holds no finished token stores: it has no {MANIFEST}. Name the folder that "
            "prepare.py wrote with output=<folder>."
        ) from None
    except (OSError, ValueError) as error:
        reason = printable(" ".join(str(error).split()), one_line=True)[:400]
        raise DataError(f"{printable(str(path))} is not the manifest of token stores: {reason}.") from None
    return found


def check_there(folder: Path, manifest: PreparedManifest) -> None:
    """Raise DataError unless all files exist, and the small ones that no store checks have the sha256 of the manifest.

    A store compares its own files with their hashes as it reads them.
    """
    for entry in manifest.files:
        path = folder / entry.file
        if not path.is_file():
            raise DataError(f"{printable(str(path))} does not exist, and the manifest lists it.")
        if not entry.file.startswith(("train/", "validation/")) and _entry(folder, path) != entry:
            raise DataError(f"{printable(str(path))} is damaged: its size or its sha256 is not that of the manifest.")
    listed = {entry.file for entry in manifest.files}
    for needed in ("train/manifest.json", "tokenizer/tokenizer.json", "done.json"):
        if needed not in listed:
            raise DataError(f"{printable(str(folder / MANIFEST))} does not list {needed}, which all stores have.")


def _same(output: Path, store: Store, validation_fraction: float) -> PreparedManifest:
    """Return the manifest of a folder if it is of this store; ConfigError if it is not, or of something else."""
    try:
        found = read_prepared(output)
    except DataError:
        found = None
    if found is None or (found.fingerprint, found.validation_fraction) != (store.fingerprint, validation_fraction):
        what = "other files" if found is None else "other token stores"
        raise ConfigError(
            f"output={printable(str(output))} holds {what} already, which are not overwritten. Delete it, or try "
            f"output={printable(str(output))}_2."
        )
    return found


def _files_below(path: Path) -> Iterator[Path]:
    """Yield a file itself, or the files below a folder in sorted order; none if there is nothing."""
    if path.is_file():
        yield path
    elif path.is_dir():
        yield from (each for each in sorted(path.rglob("*")) if each.is_file())


def _link(source: Path, target: Path) -> None:
    """Let a file, which is never changed, stand at another path too; a copy where the disk has no links to it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        sync_to_disk(target)


def _entry(output: Path, path: Path) -> PreparedFile:
    return PreparedFile(path.relative_to(output).as_posix(), path.stat().st_size, sha256_of(path))


def _is_to_be_written(output: Path) -> bool:
    """Return whether a folder is empty, or holds nothing but what an interrupted call has left."""
    left = [path for path in output.rglob("*") if not path.is_dir() or path.is_symlink()]
    names = [path.relative_to(output).as_posix() for path in left if not path.name.startswith(f".{MANIFEST}.")]
    if not names:
        return True
    return _UNFINISHED in names and all(name == _UNFINISHED or _FILE.fullmatch(name) for name in names)


def _clear(output: Path) -> None:
    """Delete what an interrupted call has left, and mark the folder as unfinished."""
    (output / _UNFINISHED).touch()
    for path in list(output.iterdir()):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != _UNFINISHED:
            path.unlink()


@contextmanager
def _storage(output: Path) -> Iterator[None]:
    """Raise CheckpointError that names the setting if the folder cannot be written to."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"output={printable(str(output))} cannot be written: {error.strerror or error}. Free some space, or name a "
            "folder of another disk."
        ) from error


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is made if need be; CheckpointError if another process holds it."""
    output.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(output, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not try_lock(descriptor):
            raise CheckpointError(
                f"output={printable(str(output))} is being written by another process. Wait for it, or name another "
                "folder."
            )
        yield
    finally:
        os.close(descriptor)
