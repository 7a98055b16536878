"""The lock of a run folder, which the kernel releases when its holder dies."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pretrain.errors import CheckpointError
from pretrain.files.locks import try_lock
from pretrain.files.untrusted_files import parse_json
from pretrain.launch.run_folder import LOCK, check_folder, opened_to_append


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder; raise CheckpointError with host and process if another run holds it.

    The lock excludes other processes, not this one. On a network file system it excludes other machines only if the
    file system supports record locks between them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    check_folder(folder)
    with opened_to_append(folder / LOCK) as file:
        if not try_lock(file.fileno(), by_process=True):  # the processes of the run must not inherit it
            file.seek(0)
            raise CheckpointError(
                f"{folder} is in use by another run ({_holder(file.read(1000))}). "
                "Wait for it, stop it, or start a run in another folder: paths.run_dir=<folder>."
            )
        file.truncate(0)
        json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _holder(text: str) -> str:
    """Return the process that wrote the lock file, whose content is not trusted."""
    try:
        holder = parse_json(text)
        return f"process {int(holder['pid'])} on {str(holder['host'])[:100]!a}"
    except (ValueError, TypeError, KeyError, OverflowError):
        return "an unknown process"
