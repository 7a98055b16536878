"""The LightningDataModule: micro-batches by number, so that a run's place in the data is its step."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from pretrain.data.batch_sizes import BatchSizes
from pretrain.data.mixture import MixedStream
from pretrain.data.streaming.dataset import StreamedRows
from pretrain.data.train_stream import RowStream
from pretrain.errors import CheckpointError, DataError
from pretrain.objectives.batch import IGNORE, Batch
from pretrain.objectives.objective import Objective
from pretrain.stop_signals import join_no_group

_VALIDATION_SAMPLES = 2**62  # where validation rows stand in the stream: their masks never meet those of training


class MicroBatches(Dataset[Batch]):
    """Micro-batch k of this rank: row numbers, tokens and masks follow from k alone.

    Step 0 would begin at sample `offset` of the stream: other than 0 where earlier steps had another batch size. A row
    that is left out keeps its place and has no targets.
    """

    def __init__(
        self,
        stream: MixedStream | StreamedRows,
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
        step, part = divmod(index, self.accumulation)
        samples = self.stream.samples(step, part * self.ranks + self.rank, self.size, self.batch_size)
        return self.batch(samples + self.offset)

    def batch(self, samples: np.ndarray) -> Batch:
        """Return the micro-batch of the rows at these places of the stream."""
        batch = self.objective.collate(self.stream.rows(samples), torch.from_numpy(samples))
        if self.excluded:
            blamed = [row.id in self.excluded for row in self.stream.placed(samples)]
            batch.targets[torch.tensor(blamed)] = IGNORE
        return batch


class ValidationBatches(Dataset[Batch]):
    """The same rows of one source at every validation, in a fixed order, with fixed masks."""

    def __init__(
        self, stream: RowStream, objective: Objective, size: int, max_rows: int, rank: int = 0, ranks: int = 1
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
        places = np.arange(first, first + self.size)
        beyond = places >= self.n_rows  # every rank has as many batches: the last are filled up with rows that count 0
        places[beyond] = 0
        batch = self.objective.collate(self.stream.rows(places), torch.from_numpy(places + _VALIDATION_SAMPLES))
        batch.targets[torch.from_numpy(beyond)] = IGNORE
        return batch


class RangeSampler(Sampler[int]):
    """Counts upwards from `start`; its length is that of the whole run, as Lightning counts what was read before."""

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.end))

    def __len__(self) -> int:
        return self.end


class InProcessLoader(Iterable[Batch]):
    """Micro-batches one after another, as a DataLoader without workers gives them, without its time for each."""

    def __init__(self, batches: MicroBatches | ValidationBatches, numbers: RangeSampler) -> None:
        self.batches = batches
        self.numbers = numbers

    def __iter__(self) -> Iterator[Batch]:
        return map(self.batches.__getitem__, self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)


def _loader(batches: MicroBatches, numbers: RangeSampler, workers: int) -> Iterable[Batch]:
    """Return a loader that leaves the global random generator alone, from which torch's would draw at every start.

    A run resumed at a step that ends with a validation does not validate again, and must draw the same dropout.
    """
    if not workers:
        return InProcessLoader(batches, numbers)
    return DataLoader(
        batches,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=_begin_worker,
    )


def _begin_worker(number: int) -> None:
    """Have a loader process take no part in signals to the process group: the run saves first, and then ends it."""
    join_no_group()


@contextmanager
def loader_errors() -> Iterator[None]:
    """Turn what torch says of its loader processes into one DataError with what it is about."""
    try:
        yield
    except DataError as error:
        if "DataLoader worker process" not in str(error):
            raise
        raise DataError(str(error).strip().splitlines()[-1].partition(": ")[2]) from None
    except (RuntimeError, CheckpointError) as error:  # torch raises wherever the process stands, in a save too
        _, told, what = str(error).partition("DataLoader worker")
        if not told:
            raise
        what = what.splitlines()[0].partition(". ")[0].rstrip(". ")
        raise DataError(
            f"a loader process was lost: {told}{what}. Often memory is short. Try data.num_workers=0."
        ) from error


class TextDataModule(L.LightningDataModule):
    """Streams packed rows to the Trainer, from the micro-batch where the run stands."""

    def __init__(
        self,
        train: MixedStream | StreamedRows,
        validation: dict[str, RowStream],
        objective: Objective,
        *,
        size: int,
        batch_size: int,
        batch_sizes: BatchSizes,
        max_validation_rows: int,
        num_workers: int,
        excluded: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__()
        self.excluded = excluded
        self.train_stream = train
        self.validation_streams = validation
        self.objective = objective
        self.size = size
        self.batch_size = batch_size
        self.batch_sizes = batch_sizes  # those of the run so far, this one the last
        self.max_validation_rows = max_validation_rows
        self.num_workers = num_workers

    def train_dataloader(self) -> Iterable[Batch]:
        """Return the loader of all micro-batches from the trainer's step on."""
        assert self.trainer is not None
        batches = self._training_batches()
        start = self.trainer.global_step * batches.accumulation
        end = 2**62  # never exhausted: the run's length ends it
        return _loader(batches, RangeSampler(start, end), self.num_workers)

    def training_batch(self, samples: np.ndarray) -> Batch:
        """Return the micro-batch of the training rows at these places of the stream, once more."""
        return self._training_batches().batch(samples)

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

    def val_dataloader(self) -> list[InProcessLoader]:
        """Return a loader of the validation rows of each source that has any, for each part of the objective."""
        assert self.trainer is not None
        sources = [
            ValidationBatches(stream, objective, self.size, self._rows_to_score(name), **self._share())
            for name, stream in self.validation_streams.items()
            for objective in self.objective.parts.values()
        ]
        return [InProcessLoader(batches, RangeSampler(0, len(batches))) for batches in sources]

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Return the batch on the device; a GPU fetches it when it gets there, and the processor goes on meanwhile."""
        return batch.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else batch.to(device)

    def _share(self) -> dict[str, int]:
        """Return which rows of a batch this process reads: the `rank`-th of so many `ranks`."""
        assert self.trainer is not None
        if self.trainer.world_size == 1:
            return {"rank": 0, "ranks": 1}
        found = self.trainer.distributed_sampler_kwargs
        assert found is not None
        return {"rank": found["rank"], "ranks": found["num_replicas"]}

    def _rows_to_score(self, source: str) -> int:
        """Return a source's share of the most rows to score, 1 or more; 0 where all are scored."""
        share = self.train_stream.shares[source]
        return self.max_validation_rows and max(1, round(self.max_validation_rows * share))
