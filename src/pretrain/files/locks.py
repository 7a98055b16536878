"""Locks of files between processes: the system releases them when their holder dies."""

import fcntl


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
