"""The LightningDataModule: micro-batches by index, so that a run's position in the data is its step."""

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import lightning as L
import numpy as np
import torch

from pretrain.data.batch_sizes import BatchSizes
from pretrain.data.collate import IGNORE
from pretrain.data.mixture import MixtureDataset
from pretrain.data.shuffle import micro_batch_samples
from pretrain.data.streaming.dataset import StreamingDataset
from pretrain.data.train_stream import ShuffledRows
from pretrain.objectives.batch import Batch
from pretrain.objectives.objective import Objective

_VALIDATION_SAMPLES = 2**62  # sample index of the first validation row: its masks never equal those of training

POLL_S = 0.2  # between looks at whether the run has ended, while the queue is full
CLOSE_S = 5.0  # for the thread to finish a batch; it is a daemon, so that a process never waits longer for it


class MicroBatches:
    """Micro-batches of this rank by index: rows, tokens and masks are a pure function of the index.

    `offset` is added to every sample index: not 0 if earlier steps had another batch size. An excluded row stays in its
    batch, without targets.
    """

    def __init__(
        self,
        stream: MixtureDataset | StreamingDataset,
        objective: Objective,
        *,
        size: int,
        batch_size: int,
        offset: int = 0,
        rank: int = 0,
        ranks: int = 1,
        excluded: frozenset[str] = frozenset(),
    ) -> None:
        self.stream = stream
        self.excluded = excluded
        self.objective = objective
        self.size = size
        self.batch_size = batch_size
        self.offset = offset
        self.rank = rank
        self.ranks = ranks
        self.accumulation = batch_size // (size * ranks)

    def __getitem__(self, index: int) -> Batch:
        return self.batch(self._samples(index))

    def is_waiting(self, index: int) -> bool:
        """Return whether the text of a micro-batch is still being read; errors as `StreamingDataset.is_waiting`."""
        return self.stream.is_waiting(int(self._samples(index)[-1]) + 1)

    def _samples(self, index: int) -> np.ndarray:
        step, part = divmod(index, self.accumulation)
        return self.offset + micro_batch_samples(step, part * self.ranks + self.rank, self.size, self.batch_size)

    def batch(self, sample_indices: np.ndarray) -> Batch:
        """Return the micro-batch of these samples."""
        batch = self.objective.collate(self.stream.rows(sample_indices), torch.from_numpy(sample_indices))
        if self.excluded:
            excluded = [row.id in self.excluded for row in self.stream.row_origins(sample_indices)]
            batch.targets[torch.tensor(excluded)] = IGNORE
        return batch


class ValidationBatches:
    """The same rows of one source at every validation, in a fixed order, with fixed masks."""

    def __init__(
        self, stream: ShuffledRows, objective: Objective, size: int, max_rows: int, rank: int = 0, ranks: int = 1
    ) -> None:
        self.stream = stream
        self.objective = objective
        self.size = size
        self.rank = rank
        self.ranks = ranks
        self.n_rows = min(max_rows or len(stream), len(stream))

    def __len__(self) -> int:
        return -(-self.n_rows // (self.size * self.ranks))

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        first = (index * self.ranks + self.rank) * self.size
        positions = np.arange(first, first + self.size)
        beyond = positions >= self.n_rows  # all ranks have as many batches: padding rows without targets fill the last
        positions[beyond] = 0
        batch = self.objective.collate(self.stream.rows(positions), torch.from_numpy(positions + _VALIDATION_SAMPLES))
        batch.targets[torch.from_numpy(beyond)] = IGNORE
        return batch


class BatchLoader(Iterable[Batch]):
    """Micro-batches by number from `start`, assembled up to `prefetch` ahead by one thread, or when asked for if 0.

    It leaves the global random generator alone, unlike torch's DataLoader, which draws from it at every start: a run
    resumed at a step that ends with a validation does not validate again, and must draw the same dropout.
    """

    def __init__(self, batches: MicroBatches | ValidationBatches, start: int, end: int, prefetch: int = 0) -> None:
        self.batches = batches
        self.start = start
        self.end = end
        self.prefetch = prefetch
        self._thread: _PrefetchThread | None = None

    def __iter__(self) -> Iterator[Batch]:
        numbers = range(self.start, self.end)
        if not self.prefetch or isinstance(self.batches, ValidationBatches):
            return map(self.batches.__getitem__, numbers)
        self.close()
        self._thread = _PrefetchThread(self.batches, numbers, self.prefetch)
        return self._thread

    def __len__(self) -> int:
        """Return the length of the whole run: Lightning counts what was read before `start`."""
        return self.end

    def close(self) -> None:
        """End the thread, if there is one."""
        if self._thread is not None:
            self._thread.close()
            self._thread = None


class _PrefetchThread(Iterator[Batch]):
    """Assembles batches in their order; the error of a batch is raised by the `next` that asks for that batch."""

    def __init__(self, batches: MicroBatches, numbers: range, prefetch: int) -> None:
        self._batches, self._numbers = batches, numbers
        self._queue: queue.Queue[Batch | Exception] = queue.Queue(prefetch)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    def __next__(self) -> Batch:
        item = self._queue.get()
        if isinstance(item, Exception):
            self.close()
            raise item
        return item

    def close(self) -> None:
        """End the thread as soon as it has assembled its current batch."""
        self._stopped.set()
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        for item in self._items():
            while not self._stopped.is_set():
                with suppress(queue.Full):
                    self._queue.put(item, timeout=POLL_S)
                    break
            if self._stopped.is_set():
                return

    def _items(self) -> Iterator[Batch | Exception]:
        try:
            for number in self._numbers:
                while self._batches.is_waiting(number):
                    if self._stopped.wait(POLL_S):
                        return
                yield self._batches[number]
            yield StopIteration()
        except Exception as error:
            yield error


class TextDataModule(L.LightningDataModule):
    """Streams packed rows to the Trainer, from the micro-batch of its current step."""

    def __init__(
        self,
        train: MixtureDataset | StreamingDataset,
        validation: dict[str, ShuffledRows],
        objective: Objective,
        *,
        size: int,
        batch_size: int,
        batch_sizes: BatchSizes,
        max_validation_rows: int,
        prefetch: int,
        excluded: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__()
        self.excluded = excluded
        self.train_stream = train
        self.validation_streams = validation
        self.objective = objective
        self.size = size
        self.batch_size = batch_size
        self.batch_sizes = batch_sizes  # of the run so far, `batch_size` last
        self.max_validation_rows = max_validation_rows
        self.prefetch = prefetch
        self._loader: BatchLoader | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the excluded rows and the batch sizes so far; the position in the data follows from the step."""
        return {"left_out": sorted(self.excluded), "batch_sizes": self.batch_sizes.record()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Exclude the rows of `state_dict` too; `batch_sizes_of` reads its batch sizes before, for the run's length."""
        self.excluded |= frozenset(state_dict.get("left_out", []))

    def train_dataloader(self) -> Iterable[Batch]:
        """Return the loader of all micro-batches from the trainer's step on."""
        assert self.trainer is not None
        batches = self._training_batches()
        start = self.trainer.global_step * batches.accumulation
        end = 2**62  # never exhausted: the run's length ends it
        self._loader = BatchLoader(batches, start, end, self.prefetch)
        return self._loader

    def close(self) -> None:
        """End the thread that assembles batches."""
        if self._loader is not None:
            self._loader.close()

    def training_batch(self, sample_indices: np.ndarray) -> Batch:
        """Return the micro-batch of these training samples again."""
        return self._training_batches().batch(sample_indices)

    def _training_batches(self) -> MicroBatches:
        assert self.trainer is not None
        return MicroBatches(
            self.train_stream,
            self.objective,
            size=self.size,
            batch_size=self.batch_size,
            offset=self.batch_sizes.offset,
            **self._share(),
            excluded=self.excluded,
        )

    def val_dataloader(self) -> list[BatchLoader]:
        """Return one loader for each source with validation rows and each part of the objective."""
        assert self.trainer is not None
        sources = [
            ValidationBatches(stream, objective, self.size, self._rows_to_score(name), **self._share())
            for name, stream in self.validation_streams.items()
            for objective in self.objective.parts.values()
        ]
        return [BatchLoader(batches, 0, len(batches)) for batches in sources]

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Return the batch on the device; copies to a GPU are asynchronous, from pinned memory."""
        return batch.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else batch.to(device)

    def _share(self) -> dict[str, int]:
        """Return this process's data-parallel `rank` and the number of `ranks`."""
        assert self.trainer is not None
        if self.trainer.world_size == 1:
            return {"rank": 0, "ranks": 1}
        kwargs = self.trainer.distributed_sampler_kwargs
        assert kwargs is not None
        return {"rank": kwargs["rank"], "ranks": kwargs["num_replicas"]}

    def _rows_to_score(self, source: str) -> int:
        """Return a source's share of `max_validation_rows`, at least 1; 0 if all rows are scored."""
        share = self.train_stream.shares[source]
        return self.max_validation_rows and max(1, round(self.max_validation_rows * share))
