"""The folder of a corpus: one process writes it at a time, and what a killed one left is deleted."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pretrain.data.curation.engine import storage_errors
from pretrain.data.curation.manifest import FORMAT, ITEMS, MANIFEST, MAX_MANIFEST_BYTES
from pretrain.errors import CheckpointError, ConfigError, printable
from pretrain.files.locks import try_lock
from pretrain.files.untrusted_files import open_own, read_json

# what a curation writes into its folder, and of the folders among it the names of their files
_WRITTEN = (MANIFEST, ITEMS, "data", "decisions", "index", "work", "report.html", "ATTRIBUTION.jsonl.zst",
            "quality.safetensors")  # fmt: skip
_FOLDERS = ("data", "decisions", "index")
_OWN_NAME = re.compile(r"[0-9]{5,}\.(parquet|rows)|\..*")


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Hold the lock of a corpus; CheckpointError if another process does, ConfigError for a folder of other files."""
    _check_is_ours(output)
    with storage_errors(output):
        (output / "work").mkdir(parents=True, exist_ok=True)
    try:
        descriptor = open_own(output / "work" / "lock", os.O_RDWR)
    except ValueError as error:
        raise CheckpointError(f"{output / 'work' / 'lock'} cannot be opened: {error}. Delete it.") from error
    try:
        if not try_lock(descriptor):
            raise CheckpointError(
                f"output={printable(str(output))} is being written by another process. Wait for it, or choose "
                "another folder."
            )
        yield
    finally:
        os.close(descriptor)


def _check_is_ours(output: Path) -> None:
    """Raise ConfigError where a curation would replace or delete what none has written."""
    if os.path.lexists(output / "work" / "lock") or _is_corpus(output):
        folders = [output / name for name in _FOLDERS if (output / name).is_dir()]
        foreign = [path for each in folders for path in each.iterdir() if not _OWN_NAME.fullmatch(path.name)]
    else:
        foreign = [output / name for name in _WRITTEN if _holds_something(output / name)]
    if foreign:
        raise ConfigError(
            f"output={printable(str(output))} has {printable(str(foreign[0].relative_to(output)))}, which no curation "
            "has written, and this one would delete it. Name a folder of its own: "
            f"output={printable(str(output / 'corpus'))}."
        )


def _holds_something(path: Path) -> bool:
    return os.path.lexists(path) and (path.is_symlink() or not path.is_dir() or any(path.iterdir()))


def _is_corpus(output: Path) -> bool:
    """Return whether a folder has the manifest of a corpus, of this version or another one."""
    try:
        manifest = read_json(output / MANIFEST, MAX_MANIFEST_BYTES)
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT


def sweep(output: Path) -> None:
    """Delete the half-written files of a process that was killed; those of stages are deleted as each begins."""
    with storage_errors(output):
        for pattern in (".*.tmp", "work/.*.tmp", "work/units-*/.*.tmp"):
            for draft in output.glob(pattern):
                draft.unlink(missing_ok=True)
