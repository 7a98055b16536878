"""The process that reads a corpus ahead while another process trains on the finished eras."""

import atexit
import json
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pretrain.data.config import DataConfig
from pretrain.data.sources.unchanged_files import HashedFile
from pretrain.errors import CheckpointError, ConfigError, DataError, PretrainError, RankLostError, printable
from pretrain.stop_signals import STOP_SIGNALS, keep_from_children

STOP_S = 5.0  # for the process to end by itself: it may be waiting for a network
WATCH_S = 0.5  # between checks that the training process is alive
_BY_NAME: dict[str, type[PretrainError]] = {kind.__name__: kind for kind in (ConfigError, DataError, CheckpointError)}


@dataclass(frozen=True)
class ReadAheadJob:
    """A corpus to read into the stream in `folder`, until it has `rows` rows of `row_length` tokens."""

    data: DataConfig
    folder: Path
    row_length: int
    rows: int
    hashed: dict[str, HashedFile] = field(default_factory=dict)  # as `Stream.hashed`


class ReadAhead:
    """Starts, watches and ends the process, which reads until the job is done or the corpus ends.

    The process ignores stop signals and ends with the process that started it, however that one ends.
    """

    def __init__(self, job: ReadAheadJob) -> None:
        self.job = job
        self._process: Any = None
        self._connection: Connection | None = None

    def start(self) -> None:
        """Start the process; its first new text takes a few seconds."""
        context = multiprocessing.get_context("spawn")
        connection, theirs = context.Pipe()
        process = context.Process(target=_run, args=(self.job, theirs), name="read-ahead", daemon=True)
        keep_from_children()
        process.start()
        theirs.close()
        self._process, self._connection = process, connection
        atexit.register(self.stop)

    def check(self) -> None:
        """Raise the error that ended the process; nothing if it reads, is done or was never started.

        ConfigError, DataError and CheckpointError keep their class, others become DataError; RankLostError if it was
        killed.
        """
        if self._process is None or self._connection is None:
            return
        if self._connection.poll():
            with suppress(EOFError, OSError):
                failure = json.loads(self._connection.recv_bytes())
                raise _BY_NAME.get(failure["kind"], DataError)(failure["message"])
        if not self._process.is_alive() and self._process.exitcode:
            code = self._process.exitcode
            name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise RankLostError(
                f"the process that reads the corpus was lost ({name}); go on from the last checkpoint with resume=auto"
            )

    def stop(self) -> None:
        """End the process; its unfinished era is dropped and read again by the next."""
        if self._process is None or self._connection is None:
            return
        with suppress(OSError):
            self._connection.send_bytes(b"stop")
        self._process.join(2 * STOP_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()
        self._connection.close()
        self._process = self._connection = None
        atexit.unregister(self.stop)


def _run(job: ReadAheadJob, connection: Connection) -> None:
    """Run the process; its error is sent through the connection."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the training process saves first, and then ends this one
    stopped = threading.Event()
    threading.Thread(target=_watch, args=(connection, stopped, os.getppid()), daemon=True).start()
    try:
        _produce(job, stopped)
    except Exception as error:
        if not isinstance(error, PretrainError):
            print(printable(traceback.format_exc()), file=sys.stderr)
        message = str(error) if isinstance(error, PretrainError) else (
            f"reading the corpus into {job.folder} failed: {type(error).__name__}: {' '.join(str(error).split())}"
        )  # fmt: skip
        with suppress(OSError):  # the training process may be gone
            connection.send_bytes(json.dumps({"kind": type(error).__name__, "message": message}).encode())
        sys.exit(1)


def _produce(job: ReadAheadJob, stopped: threading.Event) -> None:
    # imported here: signals are ignored before anything large is loaded
    from pretrain.data.streaming.corpus import Stream
    from pretrain.data.streaming.dataset import StreamingDataset
    from pretrain.data.streaming.producer import StreamJob, produce
    from pretrain.data.token_store.format import storage_errors
    from pretrain.data.tokenizers.tokenizer import Tokenizer

    source = job.data.open()
    source.hashed = job.hashed
    rows = StreamingDataset(
        Stream(job.folder), job.data, job.row_length, pad_id=0, seed=0
    )  # counts and plans rows only
    with storage_errors(job.folder):
        tokenizer = Tokenizer.load(job.folder / "tokenizer")
        writing = StreamJob(job.folder, source, tokenizer, lambda text: print(printable(text), flush=True))
        produce(writing, enough=lambda: rows.available() >= job.rows, stopped=stopped.is_set)


def _watch(connection: Connection, stopped: threading.Event, parent: int) -> None:
    """Set `stopped` on request or at the parent's death; end the process STOP_S later."""
    while not connection.poll(WATCH_S) and os.getppid() == parent:
        pass
    stopped.set()
    threading.Event().wait(STOP_S)
    os._exit(0)
