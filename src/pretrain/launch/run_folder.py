"""The files of a run folder, which are not trusted: never opened through a link, and limited in size.

    config.yaml, metrics.csv, samples.jsonl, ledger.jsonl, history.json, report.json, report.html, lock, train.log
                                                                   written by rank 0
    train.rank<n>.log                                              written by rank n
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
from dataclasses import dataclass, field
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
HISTORY, SAMPLES, PAGE, LOG = "history.json", "samples.jsonl", "report.html", "train.log"
CHECKPOINTS, FAILURES, PROFILE = "checkpoints", "failures", "profile"
SWEPT = "PRETRAIN_SWEPT"  # environment variable of a sweep's jobs: the settings that differ between them, by commas
MAX_LINE_BYTES = 1 << 20  # of metrics.csv and ledger.jsonl; a line of the ledger lists every row of a step
MAX_LINES_BYTES = 1 << 32
_OF_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)  # of an open file, whose error names none
T = TypeVar("T")


@dataclass(frozen=True)
class FinishedRun:
    """The part of report.json that other runs and plans read."""

    steps: Count
    tokens_seen: Count
    parameters: Count
    tokens_per_s: float | None  # None: unknown, as for every figure
    validation: dict[str, float | None]
    ended: str = ""  # why a callback ended it before its length
    not_validated: dict[str, str] = field(default_factory=dict)  # reasons by source; a single source is named ""

    def has_diverged(self, metric: str) -> bool:
        """Return whether the run ended with a value of a metric that is no number, though it was measured."""
        source = metric.removeprefix("val/").removesuffix("loss").rstrip("/")
        return self.validation.get(metric, 0.0) is None and source not in self.not_validated


def check_folder(folder: Path) -> None:
    """Raise CheckpointError if a file or folder that a run writes to is a link, or no regular file or folder."""
    for name in (CONFIG, REPORT, TABLE, LEDGER, LOCK, HISTORY, SAMPLES, PAGE, LOG):
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
        return  # missing, or unreachable: opening it reports the error
    names = 1 if stat.S_ISDIR(status.st_mode) else status.st_nlink
    if not fits(status.st_mode) or names > 1:
        kind = kind_of_file(status.st_mode) + (f" of {names} names" if names > 1 else "")
        raise CheckpointError(
            f"{path} is {kind}, and a run writes only to {expected}, or it could change something outside of its "
            "folder. Replace it by a copy of its content, or delete it."
        )


@contextmanager
def opened_to_append(path: Path) -> Iterator[IO[str]]:
    """Open a text file of a run folder for reading and appending; create it if it is missing.

    Raises CheckpointError for anything but a regular file of one name, and if the storage fails.
    """
    try:
        with os.fdopen(append_descriptor(path), "a+", encoding="utf8", newline="") as file:
            yield file
    except OSError as error:
        raise unwritable(path, error) from error


def append_descriptor(path: Path) -> int:
    """Return a descriptor that reads a file of a run folder and appends to it; create the file if it is missing.

    Raises CheckpointError as `opened_to_append` does.
    """
    _check_entry(path, stat.S_ISREG, "a regular file of one name")
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o666)
    except OSError as error:
        raise unwritable(path, error) from error


def log_of_rank(rank: int) -> str:
    """Return the name of the log of a process of a run."""
    return LOG if rank == 0 else f"train.rank{rank}.log"


def lines_of(path: Path) -> Iterator[str]:
    """Yield the lines of a text file of a run folder without line ends; none if there is no file.

    Raises CheckpointError if it is not a regular UTF-8 file, or is larger than any that a run writes.
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
    """Return the complete rows of a metrics.csv; [] if there is no such file.

    Raises CheckpointError if it is not a table.
    """
    try:
        return [row for row in csv.DictReader(lines_of(path)) if _is_complete(row)]
    except csv.Error as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error


def _is_complete(row: dict[str, Any]) -> bool:
    """Return whether a row has name, step and value; a kill may leave half of the last one."""
    try:
        float(row["value"])
        return re.fullmatch(r"[0-9]{1,18}", row["step"]) is not None and isinstance(row["name"], str)
    except (KeyError, TypeError, ValueError):
        return False


def record_of(path: Path, kind: type[T]) -> T:
    """Return the record in a JSON file of a run folder.

    Raises CheckpointError if the file is missing or damaged, or a value has the wrong type.
    """
    try:
        return read_record(kind, read_json(path, follow_links=False), "it")
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def finished_run(folder: Path) -> FinishedRun | None:
    """Return the report of a finished run, None if there is none; raise CheckpointError if it is damaged."""
    path = folder / REPORT
    return record_of(path, FinishedRun) if os.path.lexists(path) else None


def newest_finished(logs_folder: Path) -> Path | None:
    """Return the run below a folder that wrote its report last; None if none has finished."""
    reports = [path for path in logs_folder.rglob(REPORT) if path.is_file() and (path.parent / CONFIG).is_file()]
    return max(reports, key=lambda path: path.stat().st_mtime).parent if reports else None


def saved_settings(folder: Path) -> RunConfig:
    """Return the settings in the config.yaml of a run folder; raise CheckpointError if they cannot be read."""
    path = folder / CONFIG
    try:
        settings = read_yaml(path, MAX_YAML_BYTES, follow_links=False)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} holds no settings.")
    try:
        config: RunConfig = from_dict(with_whole_numbers(settings, RunConfig))
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return config


def saved_step(folder: Path) -> int:
    """Return the step of a run's newest checkpoint; 0 if it has none."""
    from pretrain.checkpoint.read import step_folders  # here: a wrong setting is reported before torch is loaded

    return max((int(path.name.split("-")[1]) for path in step_folders(folder / CHECKPOINTS)), default=0)


def stopped(signal: AskedToStop, step: int) -> Interrupted:
    """Return the error that ends a run on a stop signal after its state at `step` was saved."""
    outcome = "saved; go on with resume=auto" if step else "nothing was trained yet"
    return Interrupted(f"{signal} at step {step}: {outcome}", signal.exit_code - 128)


@contextmanager
def storage_errors_of(folder: Path) -> Iterator[None]:
    """Raise CheckpointError where the storage of a run folder fails; other errors of the system stay what they are."""
    try:
        yield
    except OSError as error:
        path = None if error.filename is None else Path(os.fsdecode(error.filename))
        if path is None and error.errno in _OF_STORAGE:
            raise unwritable(folder, error) from error
        if path is not None and path.absolute().is_relative_to(folder.absolute()):
            raise unwritable(path, error) from error
        raise


def unwritable(path: Path, error: OSError) -> CheckpointError:
    """Return the error of a file of a run folder that cannot be written."""
    return CheckpointError(f"{path} cannot be written: {os.strerror(error.errno or errno.EIO)}.")


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
    return CheckpointError(f"{path} cannot be read: {' '.join(reason.split())[:300]}.")
