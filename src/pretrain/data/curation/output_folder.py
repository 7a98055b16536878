"""The folder of a corpus: one process writes it at a time, and what a killed one left is deleted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pretrain.data.curation.engine import storage_errors
from pretrain.errors import CheckpointError, printable
from pretrain.files.locks import try_lock
from pretrain.files.untrusted_files import open_own


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Hold the lock of a corpus; CheckpointError if another process does."""
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


def sweep(output: Path) -> None:
    """Delete the half-written files of a process that was killed; those of stages are deleted as each begins."""
    with storage_errors(output):
        for pattern in (".*.tmp", "work/.*.tmp", "work/units-*/.*.tmp"):
            for draft in output.glob(pattern):
                draft.unlink(missing_ok=True)
