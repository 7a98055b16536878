"""The files of a run folder, which may come from a stranger: opened as they are, never through a link, within limits.

    config.yaml, metrics.csv, ledger.jsonl, report.json, lock      written by the run's first process
    checkpoints/, failures/, profile/                              folders of files

A run writes inside its folder only. Every problem is a CheckpointError that names the file.
"""

import csv
import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from pretrain.config.run import RunConfig
from pretrain.config.serialize import from_dict
from pretrain.config.whole_numbers import with_whole_numbers
from pretrain.errors import CheckpointError, ConfigError, Interrupted
from pretrain.files.records import Count, read_record
from pretrain.files.untrusted_files import MAX_YAML_BYTES, kind_of_file, open_regular, read_json, read_yaml
from pretrain.stop_signals import AskedToStop

CONFIG, REPORT, TABLE, LEDGER, LOCK = "config.yaml", "report.json", "metrics.csv", "ledger.jsonl", "lock"


CHECKPOINTS, FAILURES, PROFILE = "checkpoints", "failures", "profile"


SWEPT = "PRETRAIN_SWEPT"  # environment variable of a sweep's jobs: the settings that differ between them, by commas


MAX_LINE_BYTES = 1 << 20  # of metrics.csv and ledger.jsonl; a line of the ledger names every row of a step


MAX_LINES_BYTES = 1 << 32


T = TypeVar("T")


@dataclass(frozen=True)
class FinishedRun:
    """What report.json says of a run that has ended, as far as other runs and plans use it."""

    steps: Count
    tokens_seen: Count
    parameters: Count
    tokens_per_s: float | None  # as any figure that there is none of
    validation: dict[str, float | None]


def check_folder(folder: Path) -> None:
    """Raise CheckpointError where a file or folder that a run writes to is a link, or no regular file or folder."""
    for name in (CONFIG, REPORT, TABLE, LEDGER, LOCK):
        _check_entry(folder / name, stat.S_ISREG, "a regular file of one name")
    for name in (CHECKPOINTS, FAILURES, PROFILE):
        _check_entry(folder / name, stat.S_ISDIR, "a folder")
    for name in (FAILURES, PROFILE):
        for path in (folder / name).glob("*"):
            _check_entry(path, stat.S_ISREG, "a regular file of one name")


def _check_entry(path: Path, fits: Any, expected: str) -> None:
    try:
        status = path.lstat()
    except OSError:
        return  # not there, or what opens it says why it cannot be reached
    names = 1 if stat.S_ISDIR(status.st_mode) else status.st_nlink
    if not fits(status.st_mode) or names > 1:
        found = kind_of_file(status.st_mode) + (f" of {names} names" if names > 1 else "")
        raise CheckpointError(
            f"{path} is {found}, where a run writes to {expected}: it would change something outside of its folder. "
            "Copy what it stands for to this place, or delete it."
        )


@contextmanager
def opened_to_append(path: Path) -> Iterator[IO[str]]:
    """Open a file of a run folder for reading and appending text, made where it is missing.

    Raises CheckpointError for a link and anything but a regular file of one name, and where the storage fails.
    """
    _check_entry(path, stat.S_ISREG, "a regular file of one name")
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(path, flags, 0o666), "a+", encoding="utf8", newline="") as file:
            yield file
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {os.strerror(error.errno or errno.EIO)}.") from error


def lines_of(path: Path) -> Iterator[str]:
    """Yield the lines of a text file of a run folder without their ends; none where there is no file.

    Raises CheckpointError where it is no regular file of UTF-8, or a line is longer than any that a run writes.
    """
    total = 0
    try:
        with open_regular(path, follow_links=False) as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                total += len(line)
                if len(line) > MAX_LINE_BYTES or total > MAX_LINES_BYTES:
                    raise ValueError("it is larger than any that a run writes")
                yield line.decode("utf8").rstrip("\r\n")
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a metrics.csv whose step and value are numbers, none where there is no such file.

    Raises CheckpointError where it is no table.
    """
    try:
        return [row for row in csv.DictReader(lines_of(path)) if _is_figure(row)]
    except csv.Error as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error


def _is_figure(row: dict[str, Any]) -> bool:
    """Whether a row is whole; a kill may have left half of the last one."""
    try:
        float(row["value"])
        return re.fullmatch(r"[0-9]{1,18}", row["step"]) is not None and isinstance(row["name"], str)
    except (KeyError, TypeError, ValueError):
        return False


def record_of(path: Path, kind: type[T]) -> T:
    """Return the record that a JSON file of a run folder holds.

    Raises CheckpointError where there is no such file, it is damaged, or a value has another type than it should.
    """
    try:
        return read_record(kind, read_json(path, follow_links=False), "it")
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def finished_run(folder: Path) -> FinishedRun | None:
    """Return what the report of a run says; None where there is none. Raises CheckpointError where it is damaged."""
    path = folder / REPORT
    return record_of(path, FinishedRun) if os.path.lexists(path) else None


def saved_settings(folder: Path) -> RunConfig:
    """Return the settings in the config.yaml of a run folder; raises CheckpointError where it holds none of ours."""
    path = folder / CONFIG
    try:
        settings = read_yaml(path, MAX_YAML_BYTES, follow_links=False)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} holds no settings.")
    try:
        found: RunConfig = from_dict(with_whole_numbers(settings, RunConfig))
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return found


def saved_step(folder: Path) -> int:
    """Return the step of a run's newest checkpoint, 0 without one."""
    from pretrain.checkpoint.read import step_folders  # here: a wrong setting is reported without loading torch

    return max((int(path.name.split("-")[1]) for path in step_folders(folder / CHECKPOINTS)), default=0)


def stopped(signal: AskedToStop, step: int) -> Interrupted:
    """Return the error that ends a run on a stop signal, its state at `step` being on disk."""
    left = "saved; go on with resume=auto" if step else "nothing was trained yet"
    return Interrupted(f"{signal} at step {step}: {left}", signal.exit_code - 128)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
    return CheckpointError(f"{path} cannot be read: {' '.join(reason.split())[:300]}.")
