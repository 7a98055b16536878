"""Locks of files between processes: the system releases them when their holder dies."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pretrain.errors import CheckpointError, printable
from pretrain.files.untrusted_files import open_own


def try_lock(descriptor: int, *, by_process: bool = False) -> bool:
    """Take the exclusive lock of an open file without waiting; return whether it was free.

    By default any other descriptor is excluded, of this process too, and a forked child shares the lock (flock).
    `by_process`: the lock excludes other processes only, and no child inherits it (POSIX record lock).
    """
    try:
        (fcntl.lockf if by_process else fcntl.flock)(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


@contextmanager
def wait_for_lock(path: Path) -> Iterator[None]:
    """Hold the lock of a file of the cache, which is made if need be, once no other process of this machine does.

    Raises CheckpointError if the file cannot be made, or is a link or no regular file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = open_own(path, os.O_RDWR)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{printable(str(path.parent))} cannot be written: {error}. Try another paths.cache_dir=<folder>."
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
