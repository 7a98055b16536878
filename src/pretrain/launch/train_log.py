"""train.log of a run folder: what the terminal shows, line by line with the time, kept through kills and resumes.

Rank 0 writes `train.log`; what another process prints, warnings and errors alone, goes to `train.rank<n>.log`.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pretrain.errors import PretrainError, message_of, printable, visible
from pretrain.launch.run_folder import append_descriptor, log_of_rank
from pretrain.stop_signals import AskedToStop

# control sequences of terminals, ECMA-48 sections 5.4 and 5.6: colors, movements, titles
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])")
_MAX_LINE = 1 << 16  # characters; a longer line is cut

_open_logs: list[TrainLog] = []  # of this process; the innermost last


class TrainLog:
    """The lines of a process: in memory until `open` names the folder, then in its file, each with one write.

    Nothing is buffered, so a kill loses no line. Storage that fails ends the log with one warning, never the run.
    """

    def __init__(self) -> None:
        self._descriptor: int | None = None
        self._early: list[bytes] = []
        self._works = True
        self._lock = threading.RLock()
        self._process = os.getpid()

    def open(self, folder: Path, rank: int) -> None:
        """Append to the log of a run folder from now on, first what was written before.

        Raises CheckpointError for a file that cannot be one. Of ranks above 0, what came before is left out.
        """
        with self._lock:
            early, self._early = self._early, []
            self._descriptor = append_descriptor(folder / log_of_rank(rank))
            self._append(b"".join(early) if rank == 0 else b"")

    def write(self, text: str) -> None:
        """Append the lines of a text, each after the time, without control characters; empty ones are left out."""
        if os.getpid() != self._process:  # a fork may hold a lock of another thread of this process
            return
        stamp = time.strftime("%Y-%m-%d %H:%M:%S%z")
        lines = [visible(_ESCAPE.sub("", line)[:_MAX_LINE].rstrip(), one_line=True) for line in text.split("\n")]
        encoded = "".join(f"{stamp} {line}\n" for line in lines if line).encode(errors="backslashreplace")
        with self._lock:
            if self._descriptor is None:
                self._early.append(encoded)
            else:
                self._append(encoded)

    def _append(self, lines: bytes) -> None:
        if not self._works or self._descriptor is None or not lines:
            return
        try:
            os.write(self._descriptor, lines)
        except OSError as error:
            self._works = False
            print(printable(f"warning: train.log ends here: {error}", one_line=True), file=sys.stderr)

    def close(self) -> None:
        """Close the file; what is written later is dropped."""
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
            self._descriptor, self._works = None, False


class _Copied:
    """A stream of the terminal that also gives its lines to a log; of a bar that overwrites itself, the last state."""

    def __init__(self, stream: Any, log: TrainLog) -> None:
        self.stream = stream
        self._log = log
        self._partial = ""

    def write(self, text: str) -> int:
        """Write a text to the terminal, and its complete lines to the log."""
        self.stream.write(text)  # the stream of a notebook or of a cluster's worker may return nothing
        *lines, partial = (self._partial + text).split("\n")
        if lines:
            self._log.write("\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines))
        self._partial = partial[partial[:-1].rfind("\r") + 1 :][-_MAX_LINE:]  # the last \r may be of a line's end
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def copied_output() -> Iterator[TrainLog]:
    """Copy what this process prints into a log, and at last the error that ends the block."""
    log = TrainLog()
    copies = _Copied(sys.stdout, log), _Copied(sys.stderr, log)
    sys.stdout, sys.stderr = copies
    _open_logs.append(log)
    try:
        yield log
    except BaseException as error:
        log.write(_reason(error))
        raise
    finally:
        _open_logs.remove(log)
        if sys.stdout is copies[0]:
            sys.stdout = copies[0].stream
        if sys.stderr is copies[1]:
            sys.stderr = copies[1].stream
        log.close()


def log_unseen(text: str) -> None:
    """Write a text that the terminal shows in another form into the log of this process, if there is one."""
    if _open_logs:
        _open_logs[-1].write(text)


def _reason(error: BaseException) -> str:
    if isinstance(error, PretrainError):
        return message_of(error)
    return f"Interrupted: {error}" if isinstance(error, AskedToStop) else traceback.format_exc()
