"""A process of its own that reads a corpus on while this one trains on what is there."""

import atexit
import json
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pretrain.data.config import DataConfig
from pretrain.errors import CheckpointError, ConfigError, DataError, PretrainError, RankLostError, printable
from pretrain.stop_signals import STOP_SIGNALS, keep_from_children

STOP_S = 5.0  # for the process to leave by itself: it may be waiting for a network


WATCH_S = 0.5  # between looks at whether the process that trains still lives


_BY_NAME: dict[str, type[PretrainError]] = {kind.__name__: kind for kind in (ConfigError, DataError, CheckpointError)}


class ReadAhead:
    """Starts, watches and ends the process. It reads until `rows` rows are there, or the corpus has ended.

    It dies with the process that started it, however that one dies, and leaves signals to it.
    """

    def __init__(
        self, data: DataConfig, folder: Path, row_length: int, rows: int, hashed: dict[str, Any] | None = None
    ) -> None:
        """`hashed`: what the corpus's files were when the run began, by their paths, as `Stream.hashed`."""
        self.data, self.folder, self.row_length, self.rows, self.hashed = data, folder, row_length, rows, hashed or {}
        self._process: Any = None
        self._connection: Connection | None = None

    def start(self) -> None:
        """Start the process; it needs a few seconds before the first new text is there."""
        context = multiprocessing.get_context("spawn")
        connection, theirs = context.Pipe()
        words = (self.data, str(self.folder), self.row_length, self.rows, self.hashed, theirs)
        process = context.Process(target=_run, args=words, name="read-ahead", daemon=True)
        keep_from_children()
        process.start()
        theirs.close()
        self._process, self._connection = process, connection
        atexit.register(self.stop)

    def check(self) -> None:
        """Return where all is well: the process reads, or has read enough, or was never started.

        Raises the ConfigError, DataError or CheckpointError that ended it, DataError for any other, RankLostError where
        it was killed.
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
        """End the process; what it has not finished is dropped, and made again by the next."""
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


def _run(
    data: DataConfig, folder: str, row_length: int, rows: int, hashed: dict[str, Any], connection: Connection
) -> None:
    """What the process does; how it fails goes through the connection."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the process that trains saves first, and then ends this one
    stopped = threading.Event()
    threading.Thread(target=_watch, args=(connection, stopped, os.getppid()), daemon=True).start()
    try:
        _produce(data, Path(folder), row_length, rows, hashed, stopped)
    except Exception as error:
        if not isinstance(error, PretrainError):
            print(printable(traceback.format_exc()), file=sys.stderr)
        message = str(error) if isinstance(error, PretrainError) else (
            f"reading the corpus into {folder} failed: {type(error).__name__}: {' '.join(str(error).split())}"
        )  # fmt: skip
        with suppress(OSError):  # where nobody listens any more
            connection.send_bytes(json.dumps({"kind": type(error).__name__, "message": message}).encode())
        sys.exit(1)


def _produce(
    data: DataConfig, folder: Path, row_length: int, rows: int, hashed: dict[str, Any], stopped: threading.Event
) -> None:
    from pretrain.data.sources.open_source import open_source
    from pretrain.data.streaming.corpus import Stream
    from pretrain.data.streaming.dataset import StreamingDataset
    from pretrain.data.streaming.producer import (
        produce,  # here: the signals are left alone before anything large is loaded
    )
    from pretrain.data.token_store.format import storage_errors
    from pretrain.data.tokenizers.tokenizer import Tokenizer

    source = open_source(data)
    source.hashed = hashed
    have = StreamingDataset(Stream(folder), data, row_length, pad_id=0, seed=0)  # counts rows, and leaves their plans
    with storage_errors(folder):
        produce(
            folder,
            source,
            data,
            Tokenizer.load(folder / "tokenizer"),
            enough=lambda: have.available() >= rows,
            report=lambda text: print(printable(text), flush=True),
            stopped=stopped.is_set,
        )


def _watch(connection: Connection, stopped: threading.Event, parent: int) -> None:
    """Set `stopped` once this process is to end, and end it where it does not come to look."""
    while not connection.poll(WATCH_S) and os.getppid() == parent:
        pass
    stopped.set()
    threading.Event().wait(STOP_S)
    os._exit(0)
