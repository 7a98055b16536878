"""The lock of a run folder, which the kernel releases when its holder dies."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pretrain.errors import CheckpointError
from pretrain.files.locks import try_lock
from pretrain.files.untrusted_files import parse_json
from pretrain.launch.run_folder import LOCK, append_descriptor, check_folder, unwritable


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder; raise CheckpointError with host and process if another run holds it.

    The folder is made if need be, and where it cannot be, that is a CheckpointError, too. The lock excludes other
    processes, not this one. On a network file system it excludes other machines only if the file system supports record
    locks between them.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{unwritable(folder, error)} Try another folder: paths.run_dir=<folder>.") from error
    check_folder(folder)
    descriptor = append_descriptor(folder / LOCK)
    try:
        try:
            _take(descriptor, folder)
        except OSError as error:
            raise unwritable(folder / LOCK, error) from error
        try:
            yield  # outside of the block above: an error of the run is none of the lock
        finally:
            with suppress(OSError):
                os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _take(descriptor: int, folder: Path) -> None:
    """Take the lock and write into its file who holds it. Raises as `only_run_in`, and OSError as the system does."""
    if not try_lock(descriptor, by_process=True):  # the processes of the run must not inherit it
        holder = _holder(os.pread(descriptor, 1000, 0).decode(errors="replace"))
        raise CheckpointError(
            f"{folder} is in use by another run ({holder}). "
            "Wait for it, stop it, or start a run in another folder: paths.run_dir=<folder>."
        )
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode())


def _holder(text: str) -> str:
    """Return the process that wrote the lock file, whose content is not trusted."""
    try:
        holder = parse_json(text)
        return f"process {int(holder['pid'])} on {str(holder['host'])[:100]!a}"
    except (ValueError, TypeError, KeyError, OverflowError):
        return "an unknown process"
