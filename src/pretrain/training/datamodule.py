"""The LightningDataModule: micro-batches by index, so the step is the position in the data."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch

from pretrain.config.run import RunConfig
from pretrain.data.batch_sizes import BatchSizes
from pretrain.data.collate import IGNORE
from pretrain.data.mixture import MixtureDataset, OwnOrder
from pretrain.data.prepare import Prepared, training_rows, validation_streams
from pretrain.data.shuffle import micro_batch_samples
from pretrain.data.streaming.corpus import POLL_S
from pretrain.data.streaming.dataset import StreamingDataset
from pretrain.data.train_stream import ShuffledRows
from pretrain.errors import DataError
from pretrain.objectives.batch import Batch
from pretrain.objectives.hashed_draws import MASK_VERSION
from pretrain.objectives.objective import Objective

_VALIDATION_SAMPLES = 2**62  # sample index of the first validation row: its masks never equal those of training
CLOSE_S = 5.0  # for the prefetch thread to finish a batch; it is a daemon, so a process never waits longer


@dataclass(frozen=True)
class RankSlice:
    """The micro-batch size of a process, and its data-parallel rank."""

    size: int  # rows, of the largest batch
    rank: int = 0
    ranks: int = 1
    accumulation: int = 1  # micro-batches of a step on each rank

    def index(self, part: int) -> int:
        """Return the index, over all ranks, of this rank's micro-batch number `part`."""
        return part * self.ranks + self.rank


class MicroBatches:
    """Micro-batches of this rank by index: rows, tokens and masks are a pure function of the index.

    An excluded row stays in its batch, without targets.
    """

    def __init__(
        self,
        stream: MixtureDataset | StreamingDataset,
        objective: Objective,
        rank_slice: RankSlice,
        batch_sizes: BatchSizes,
        excluded: frozenset[str] = frozenset(),
    ) -> None:
        self.stream = stream
        self.objective = objective
        self.slice = rank_slice
        self.batch_sizes = batch_sizes
        self.excluded = excluded
        self.accumulation = rank_slice.accumulation

    def __getitem__(self, index: int) -> Batch:
        return self.batch(self._samples(index))

    def is_waiting(self, index: int) -> bool:
        """Return whether the text of a micro-batch is still being read; errors as `StreamingDataset.is_waiting`."""
        return self.stream.is_waiting(int(self._samples(index)[-1]) + 1)

    def _samples(self, index: int) -> np.ndarray:
        step, part = divmod(index, self.accumulation)
        batch_size = self.batch_sizes.batch_size(step)
        size = batch_size // (self.accumulation * self.slice.ranks)  # smaller while the batch grows
        return self.batch_sizes.samples(step) + micro_batch_samples(0, self.slice.index(part), size, batch_size)

    def batch(self, sample_indices: np.ndarray) -> Batch:
        """Return the micro-batch of these samples."""
        batch = self.objective.collate(self.stream.rows(sample_indices), torch.from_numpy(sample_indices))
        if self.excluded:
            excluded = [row.id in self.excluded for row in self.stream.row_origins(sample_indices)]
            batch.targets[torch.tensor(excluded)] = IGNORE
        return batch


class ValidationBatches:
    """The same rows of one source at every validation, in a fixed order, with fixed masks.

    With `validation_draws` of the objective, that many batches in turn hold the same rows under other masks.
    """

    def __init__(self, stream: ShuffledRows, objective: Objective, rank_slice: RankSlice, max_rows: int) -> None:
        self.stream = stream
        self.objective = objective
        self.slice = rank_slice
        self.n_rows = min(max_rows or len(stream), len(stream))

    def __len__(self) -> int:
        return -(-self.n_rows // (self.slice.size * self.slice.ranks)) * self.objective.validation_draws

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        draws = self.objective.validation_draws
        number, draw = divmod(index, draws)
        first = self.slice.index(number) * self.slice.size
        positions = np.arange(first, first + self.slice.size)
        beyond = positions >= self.n_rows  # ranks have equally many batches: the last has padding without targets
        positions[beyond] = 0
        samples = positions * draws + draw + _VALIDATION_SAMPLES  # neighbors' shares of masks differ
        batch = self.objective.collate(self.stream.rows(positions), torch.from_numpy(samples))
        batch.targets[torch.from_numpy(beyond)] = IGNORE
        return batch


# Run by the prefetch thread for each batch; returns what the main thread calls to have the batch.
CopyAhead = Callable[[Batch], Callable[[], Batch]]


class CopyToGpu:
    """Copies batches to a GPU on a stream of its own, so that the copy runs beside the kernels of the step before."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def __call__(self, batch: Batch) -> Callable[[], Batch]:
        """Begin to copy a batch, from page-locked memory."""
        with torch.cuda.stream(self.stream):
            copy = batch.pin_memory().to(self.device, non_blocking=True)
            copied = self.stream.record_event()

        def received() -> Batch:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(copied)
            copy.map(lambda tensor: _used_by(stream, tensor))
            return copy

        return received


def _used_by(stream: torch.cuda.Stream, tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor, whose memory is not given to another copy before `stream` has come past its use."""
    if tensor.is_cuda:  # the sample indices are not
        tensor.record_stream(stream)
    return tensor


class BatchLoader(Iterable[Batch]):
    """Micro-batches `start` to `end`; one thread assembles up to `prefetch` of them ahead, and copies them ahead.

    Unlike torch's DataLoader it draws nothing from the global random generator at its start: a run resumed at a step
    that ends with a validation does not validate again, and must draw the same dropout.
    """

    def __init__(
        self,
        batches: MicroBatches | ValidationBatches,
        start: int,
        end: int,
        prefetch: int = 0,
        copy_ahead: CopyAhead | None = None,
    ) -> None:
        self.batches = batches
        self.start = start
        self.end = end
        self.prefetch = prefetch
        self.copy_ahead = copy_ahead
        self._thread: _PrefetchThread | None = None

    def __iter__(self) -> Iterator[Batch]:
        numbers = range(self.start, self.end)
        if not self.prefetch or isinstance(self.batches, ValidationBatches):
            return map(self.batches.__getitem__, numbers)
        self.close()
        self._thread = _PrefetchThread(self.batches, numbers, self.prefetch, self.copy_ahead)
        return self._thread

    def __len__(self) -> int:
        """Return the length of the full run: Lightning counts the batches before `start` too."""
        return self.end

    def close(self) -> None:
        """End the prefetch thread, if there is one."""
        if self._thread is not None:
            self._thread.close()
            self._thread = None


class _PrefetchThread(Iterator[Batch]):
    """Assembles batches in order; the error of a batch is raised by the `next` of that batch."""

    def __init__(self, batches: MicroBatches, numbers: range, prefetch: int, copy_ahead: CopyAhead | None) -> None:
        self._batches, self._numbers = batches, numbers
        self._copy_ahead = copy_ahead or (lambda batch: lambda: batch)
        self._queue: queue.Queue[Callable[[], Batch] | Exception] = queue.Queue(prefetch)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    def __next__(self) -> Batch:
        item = self._queue.get()
        if isinstance(item, Exception):
            self.close()
            raise item
        return item()

    def close(self) -> None:
        """End the thread after its current batch."""
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

    def _items(self) -> Iterator[Callable[[], Batch] | Exception]:
        try:
            for number in self._numbers:
                while self._batches.is_waiting(number):
                    if self._stopped.wait(POLL_S):
                        return
                yield self._copy_ahead(self._batches[number])
            yield StopIteration()
        except Exception as error:
            yield error


class TextDataModule(L.LightningDataModule):
    """Packed rows for the Trainer, from the micro-batch of its current step on."""

    def __init__(
        self,
        config: RunConfig,
        prepared: Prepared,
        objective: Objective,
        batch_sizes: BatchSizes,
        order: OwnOrder | None = None,
    ) -> None:
        super().__init__()
        length = config.model.context_length
        self.order = order
        self.train_stream = training_rows(prepared, config.data, length, order or config.seed)
        self.rows_per_epoch = self.train_stream.rows_per_epoch  # None: unknown
        self.validation_streams = validation_streams(prepared, config.data, length)
        self.objective = objective
        self.size, self.accumulation = config.rows_per_micro_batch(), config.accumulation_steps()
        self.batch_sizes = batch_sizes  # of all steps, those ahead as planned
        self.last_step: int | None = None  # of this training; the thread that reads ahead stays within its sizes
        self.excluded: frozenset[str] = frozenset()  # ids of rows
        self.max_validation_rows = config.data.max_validation_rows
        self.prefetch = config.data.prefetch
        self._loader: BatchLoader | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return excluded rows and how masks are drawn; step and batch sizes give the position in the data."""
        state: dict[str, Any] = {"left_out": sorted(self.excluded)}
        if self.order is not None:
            state["order_of"] = self.order.stage
        if self.objective.mask_version is not None:
            state["mask_version"] = self.objective.mask_version
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Exclude the rows of `state_dict` too, and draw masks as its run did.

        Raises DataError for a version of the masks that this program does not know.
        """
        self.excluded |= frozenset(state_dict.get("left_out", []))
        if self.objective.mask_version is not None:
            drew = "mask_version" in state_dict or state_dict.get("objective") != "causal"  # else a stage begins to
            version = state_dict.get("mask_version", 1) if drew else MASK_VERSION  # the first one was not recorded
            if version not in range(1, MASK_VERSION + 1):
                raise DataError(
                    f"the resumed run drew its masks by mask_version {version!r}, and this program knows 1 to "
                    f"{MASK_VERSION}. Resume it with the program that wrote it, or start anew with init_from=<run>."
                )
            self.objective.mask_version = version

    def train_dataloader(self) -> Iterable[Batch]:
        """Return the loader of all micro-batches from the trainer's step on."""
        assert self.trainer is not None
        batches = self._training_batches()
        start = self.trainer.global_step * batches.accumulation
        end = 2**62  # never exhausted: the run's length ends it
        device = self.trainer.strategy.root_device
        copy_ahead = CopyToGpu(device) if self.prefetch and device.type == "cuda" else None
        self._loader = BatchLoader(batches, start, end, self.prefetch, copy_ahead)
        return self._loader

    def close(self) -> None:
        """End the prefetch thread."""
        if self._loader is not None:
            self._loader.close()

    def training_batch(self, sample_indices: np.ndarray) -> Batch:
        """Return the micro-batch of these training samples again, on the device that computes."""
        assert self.trainer is not None
        return self._training_batches().batch(sample_indices).to(self.trainer.strategy.root_device)

    def _training_batches(self) -> MicroBatches:
        sizes = self.batch_sizes if self.last_step is None else self.batch_sizes.cut(self.last_step)
        return MicroBatches(self.train_stream, self.objective, self._slice(), sizes, self.excluded)

    def val_dataloader(self) -> list[BatchLoader]:
        """Return one loader for each source with validation rows and each part of the objective."""
        sources = [
            ValidationBatches(stream, objective, self._slice(), self._rows_to_score(name))
            for name, stream in self.validation_streams.items()
            for objective in self.objective.validation_parts.values()
        ]
        return [BatchLoader(batches, 0, len(batches)) for batches in sources]

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Return the batch on the device; copies to a GPU are asynchronous, from pinned memory."""
        if batch.tokens.device == device:  # copied ahead
            return batch
        return batch.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else batch.to(device)

    def _slice(self) -> RankSlice:
        assert self.trainer is not None
        if self.trainer.world_size == 1:
            return RankSlice(self.size, accumulation=self.accumulation)
        kwargs = self.trainer.distributed_sampler_kwargs
        assert kwargs is not None
        return RankSlice(self.size, kwargs["rank"], kwargs["num_replicas"], self.accumulation)

    def _rows_to_score(self, source: str) -> int:
        """Return a source's share of `max_validation_rows`, at least 1; 0 for all rows."""
        share = self.train_stream.shares[source]
        return self.max_validation_rows and max(1, round(self.max_validation_rows * share))
