"""The rows of a stream in the order of a run, while the corpus is still being read."""

import threading
import time
from collections import OrderedDict
from fractions import Fraction

import numpy as np

from pretrain.data.collate import Rows
from pretrain.data.config import DataConfig
from pretrain.data.shuffle import Ints, permute
from pretrain.data.streaming.corpus import Stream, locked
from pretrain.data.train_stream import RowOrigin, ShuffledRows
from pretrain.errors import DataError

POLL_S = 0.2  # between looks at the ledger


UNREAD_S = 60.0  # without anybody reading the corpus, after which nobody will: a process that starts takes some seconds


OPEN_ERAS = 4  # kept open; an epoch takes one after the other


ALL = 2**62  # draws: a corpus that has ended is read again and again


class StreamingDataset:
    """Packed rows of a stream: those of era 0 in an order of their own, then those of era 1, and so on.

    Once the corpus has ended, the eras come again in turn, each in another order every epoch. Which rows make up a step
    is a pure function of the seed, the step and the ledger, which never changes what it says. A row that is not there
    yet is waited for.
    """

    def __init__(self, stream: Stream, config: DataConfig, row_length: int, pad_id: int, seed: int) -> None:
        self.stream = stream
        self.config = config
        self.row_length = row_length
        self.pad_id = pad_id
        self.seed = seed
        self._ends: list[int] = []  # rows up to the end of each era
        self._open: OrderedDict[int, ShuffledRows] = OrderedDict()
        self._lock = threading.RLock()  # a thread may read ahead while the main thread asks how much text there is
        self._unread_since: float | None = None  # when the corpus was first found with nobody reading it

    @property
    def shares(self) -> dict[str, Fraction]:
        """The share of each source in the rows; a stream has one source, without a name."""
        return {"": Fraction(1)}

    def is_open(self) -> bool:
        """Return whether more text is to come."""
        return not self.stream.ended()

    def tokens(self) -> dict[str, int]:
        """Return how many tokens there are to train on, so far."""
        return {"": self.stream.n_tokens}

    def epochs(self, samples: int) -> dict[str, float]:
        """Return how often the first so many samples read the rows that are there."""
        self.available()
        return {"": samples / self._ends[-1]}

    def available(self) -> int:
        """Return how many draws, from the run's first on, can be answered by now; all of them once the corpus ended.

        Raises DataError where an era is damaged.
        """
        with self._lock:
            ended = self.stream.ended()
            for number in range(len(self._ends), len(self.stream.ledger.eras)):
                self._ends.append((self._ends[-1] if self._ends else 0) + len(self._era(number)))
            return ALL if ended else self._ends[-1]

    def is_waiting(self, draws: int) -> bool:
        """Return whether one of the first `draws` draws is not there yet.

        Raises DataError where it will not come, as no process has been reading the corpus for a minute.
        """
        if self.available() >= draws:
            self._unread_since = None
            return False
        with self._lock, locked(self.stream.folder) as nobody_reads:  # not both threads: one would see the other's lock
            if not nobody_reads:
                self._unread_since = None
                return True
        self._unread_since = self._unread_since or time.monotonic()
        if time.monotonic() - self._unread_since > UNREAD_S:
            raise DataError(
                f"the run waits for more text, and for {UNREAD_S:.0f} s no process has been reading the corpus into "
                f"{self.stream.folder}. Go on with resume=auto, or read it to its end: python src/prepare.py ..."
            )
        return True

    def rows(self, sample_indices: np.ndarray) -> Rows:
        """Return the rows of these samples, (len(sample_indices), row_length), once they are there."""
        while self.is_waiting(int(sample_indices.max()) + 1):
            time.sleep(POLL_S)
        return self.read(self.order(sample_indices))

    def row_origins(self, sample_indices: np.ndarray) -> list[RowOrigin]:
        """Return where the rows of these samples come from; an id is the row's number through all eras."""
        found = []
        for number in self.order(np.asarray(sample_indices, np.int64)).tolist():
            ((era, first, _),) = self._by_era(np.array([number]))
            found.append(RowOrigin(str(number), f"era {era}", self._era(era), number - first))
        return found

    def order(self, sample_indices: np.ndarray) -> Ints:
        """Return the number of the row that each draw reads; rows are counted through all eras. Both int64, any shape.

        The draws must be there already.
        """
        epochs, positions = np.divmod(np.asarray(sample_indices, np.int64), self._ends[-1])
        numbers = np.empty_like(positions)
        for era, first, chosen in self._by_era(positions):
            size = self._ends[era] - first
            numbers[chosen] = first + permute(positions[chosen] - first, size, key=(self.seed, era, epochs[chosen]))
        return numbers

    def read(self, rows: np.ndarray) -> Rows:
        """Return rows by their number, counted through all eras, (len(rows), row_length)."""
        found = [(chosen, self._era(era).read(rows[chosen] - first)) for era, first, chosen in self._by_era(rows)]
        if len(found) == 1:
            return found[0][1]
        back = np.argsort(np.concatenate([np.flatnonzero(chosen) for chosen, _ in found]))
        return Rows.joined([part for _, part in found])[back]

    def _by_era(self, rows: np.ndarray) -> list[tuple[int, int, np.ndarray]]:
        """Return each era that holds some of the rows, its first row's number, and a mask of those that it holds."""
        if not self._ends:
            self.available()
        eras = np.searchsorted(self._ends, rows, side="right")
        return [(int(era), self._ends[era - 1] if era else 0, eras == era) for era in np.unique(eras)]

    def _era(self, number: int) -> ShuffledRows:
        """Return the rows of one era, the least recently used ones being closed."""
        with self._lock:
            if number not in self._open:
                if len(self._open) >= OPEN_ERAS:
                    self._open.popitem(last=False)
                self._open[number] = ShuffledRows(
                    self.stream.era(number), self.config, self.row_length, self.pad_id, self.seed
                )
            self._open.move_to_end(number)
            return self._open[number]
