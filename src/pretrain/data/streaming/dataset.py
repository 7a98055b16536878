"""Training rows of a stream, available while its corpus is still being read."""

import threading
import time
from collections import OrderedDict
from fractions import Fraction

import numpy as np

from pretrain.data.collate import Rows
from pretrain.data.config import DataConfig
from pretrain.data.shuffle import Ints, permute
from pretrain.data.streaming.corpus import POLL_S, Stream, locked
from pretrain.data.train_stream import RowOrigin, ShuffledRows
from pretrain.errors import DataError
from pretrain.program import command

UNREAD_S = 60.0  # waiting fails after this time without a process that reads the corpus; one starts within seconds
OPEN_ERAS = 4  # kept open; an epoch reads era after era
ALL = 2**62  # number of available samples once the corpus has ended: it repeats without limit


class StreamingDataset:
    """Packed rows of a stream, era after era, shuffled within each era.

    Once the corpus has ended, the eras repeat, each in another order every epoch. The rows of a step are a pure
    function of the seed, the step and the ledger, whose lines never change. Reading waits for rows that do not exist
    yet.
    """

    def __init__(self, stream: Stream, config: DataConfig, row_length: int, pad_id: int, seed: int) -> None:
        self.stream = stream
        self.config = config
        self.row_length = row_length
        self.pad_id = pad_id
        self.seed = seed
        self._ends: list[int] = []  # number of rows up to the end of each era
        self._open: OrderedDict[int, ShuffledRows] = OrderedDict()
        self._lock = threading.RLock()  # the prefetch thread and the main thread share this object
        self._unread_since: float | None = None  # monotonic time since when no process reads the corpus

    @property
    def shares(self) -> dict[str, Fraction]:
        """Share of each source in the rows; a stream has one source, named ""."""
        return {"": Fraction(1)}

    @property
    def rows_per_epoch(self) -> None:
        """None: the number of rows is unknown until the corpus has been read."""

    def is_open(self) -> bool:
        """Return whether the corpus is still being read."""
        return not self.stream.ended()

    def tokens(self) -> dict[str, int]:
        """Return the number of training tokens read so far, by source."""
        return {"": self.stream.n_tokens}

    def epochs(self, samples: int) -> dict[str, float]:
        """Return the number of epochs over the existing rows in `samples` samples, by source."""
        self.available()
        return {"": samples / self._ends[-1]}

    def available(self) -> int:
        """Return the number of samples available so far; `ALL` once the corpus has ended.

        Raises DataError if an era is damaged.
        """
        with self._lock:
            ended = self.stream.ended()
            for number in range(len(self._ends), len(self.stream.ledger.eras)):
                self._ends.append((self._ends[-1] if self._ends else 0) + len(self._era(number)))
            return ALL if ended else self._ends[-1]

    def is_waiting(self, samples: int) -> bool:
        """Return whether one of the first `samples` samples does not exist yet.

        Raises DataError if no process has been reading the corpus for `UNREAD_S`.
        """
        if self.available() >= samples:
            self._unread_since = None
            return False
        with self._lock, locked(self.stream.folder) as no_reader:  # one thread at a time tries the file lock
            if not no_reader:
                self._unread_since = None
                return True
        self._unread_since = self._unread_since or time.monotonic()
        if time.monotonic() - self._unread_since > UNREAD_S:
            raise DataError(
                f"the run is waiting for more text, but no process has read the corpus into {self.stream.folder} for "
                f"{UNREAD_S:.0f} s. Continue with resume=auto, or read all of it first: {command('prepare')} ..."
            )
        return True

    def rows(self, sample_indices: np.ndarray) -> Rows:
        """Wait until these samples exist and return their rows, (len(sample_indices), row_length)."""
        while self.is_waiting(int(sample_indices.max()) + 1):
            time.sleep(POLL_S)
        return self.read(self.order(sample_indices))

    def row_origins(self, sample_indices: np.ndarray) -> list[RowOrigin]:
        """Return the origin of each sample's row; its id is the row number, counted through all eras."""
        origins = []
        for number in self.order(np.asarray(sample_indices, np.int64)).tolist():
            ((era, first, _),) = self._by_era(np.array([number]))
            origins.append(RowOrigin(str(number), f"era {era}", self._era(era), number - first))
        return origins

    def order(self, sample_indices: np.ndarray) -> Ints:
        """Return the row number of each sample, counted through all eras; both int64, any shape.

        The rows must exist already.
        """
        epochs, positions = np.divmod(np.asarray(sample_indices, np.int64), self._ends[-1])
        numbers = np.empty_like(positions)
        for era, first, chosen in self._by_era(positions):
            size = self._ends[era] - first
            numbers[chosen] = first + permute(positions[chosen] - first, size, key=(self.seed, era, epochs[chosen]))
        return numbers

    def read(self, rows: np.ndarray) -> Rows:
        """Return rows by number, counted through all eras: (len(rows), row_length)."""
        parts = [(chosen, self._era(era).read(rows[chosen] - first)) for era, first, chosen in self._by_era(rows)]
        if len(parts) == 1:
            return parts[0][1]
        positions = np.argsort(np.concatenate([np.flatnonzero(chosen) for chosen, _ in parts]))
        return Rows.joined([part for _, part in parts])[positions]

    def _by_era(self, rows: np.ndarray) -> list[tuple[int, int, np.ndarray]]:
        """Return each era of `rows`: its number, its first row, and the mask of `rows` in it."""
        if not self._ends:
            self.available()
        eras = np.searchsorted(self._ends, rows, side="right")
        return [(int(era), self._ends[era - 1] if era else 0, eras == era) for era in np.unique(eras)]

    def _era(self, number: int) -> ShuffledRows:
        """Return the rows of one era; close the least recently used era if too many are open."""
        with self._lock:
            if number not in self._open:
                if len(self._open) >= OPEN_ERAS:
                    self._open.popitem(last=False)
                self._open[number] = ShuffledRows(
                    self.stream.era(number), self.config, self.row_length, self.pad_id, self.seed
                )
            self._open.move_to_end(number)
            return self._open[number]
