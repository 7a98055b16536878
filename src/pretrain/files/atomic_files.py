"""Writes that a crash or power cut cannot leave half done."""

import os
import re
from collections.abc import Iterable
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path`; a crash leaves the old file or the new one."""
    write_blocks_atomically(path, (data,))


def write_blocks_atomically(path: Path, blocks: Iterable[bytes]) -> None:
    """Write blocks one after another to `path`, as they come; a crash leaves the old file or the new one."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.unlink(missing_ok=True)
        with draft.open("xb") as file:  # never through a link
            file.writelines(blocks)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    sync_to_disk(path.parent)


def delete_drafts(folder: Path) -> None:
    """Delete the drafts of killed calls of `write_atomically`, while no other is running."""
    for draft in folder.glob(".*.tmp"):
        if re.fullmatch(r"\..+\.\d+\.tmp", draft.name) and (draft.is_file() or draft.is_symlink()):
            draft.unlink(missing_ok=True)


def sync_to_disk(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk against power cuts."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
