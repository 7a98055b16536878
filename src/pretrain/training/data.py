"""The LightningDataModule: micro-batches by number, so that a run's place in the data is its step."""

from collections.abc import Iterator

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from pretrain.data.batches import RowStream
from pretrain.data.streamed_rows import StreamedRows
from pretrain.objectives.batch import IGNORE, Batch
from pretrain.objectives.objective import Objective

_VALIDATION_SAMPLES = 2**62  # where validation rows stand in the stream: their masks never meet those of training


class MicroBatches(Dataset[Batch]):
    """Micro-batch k of this rank: row numbers, tokens and masks follow from k alone."""

    def __init__(
        self,
        stream: RowStream | StreamedRows,
        objective: Objective,
        *,
        size: int,
        batch_size: int,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.stream = stream
        self.objective = objective
        self.size = size
        self.batch_size = batch_size
        self.rank = rank
        self.ranks = ranks
        self.accumulation = batch_size // (size * ranks)

    def __getitem__(self, index: int) -> Batch:
        step, part = divmod(index, self.accumulation)
        samples = self.stream.samples(step, part * self.ranks + self.rank, self.size, self.batch_size)
        return self.objective.make_batch(self.stream.rows(samples), torch.from_numpy(samples))


class ValidationBatches(Dataset[Batch]):
    """The same rows at every validation, in a fixed order, with fixed masks."""

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
        batch = self.objective.make_batch(self.stream.rows(places), torch.from_numpy(places + _VALIDATION_SAMPLES))
        batch.targets[torch.from_numpy(beyond)] = IGNORE
        return batch


class From(Sampler[int]):
    """Counts upwards from `start`; its length is that of the whole run, as Lightning counts what was read before."""

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.end))

    def __len__(self) -> int:
        return self.end


class TextDataModule(L.LightningDataModule):
    """Streams packed rows to the Trainer, from the micro-batch where the run stands."""

    def __init__(
        self,
        train: RowStream | StreamedRows,
        validation: RowStream | None,
        objective: Objective,
        *,
        size: int,
        batch_size: int,
        max_validation_rows: int,
        num_workers: int,
    ) -> None:
        super().__init__()
        self.train_stream = train
        self.validation_stream = validation
        self.objective = objective
        self.size = size
        self.batch_size = batch_size
        self.max_validation_rows = max_validation_rows
        self.num_workers = num_workers

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of all micro-batches from the trainer's step on."""
        assert self.trainer is not None
        batches = MicroBatches(
            self.train_stream,
            self.objective,
            size=self.size,
            batch_size=self.batch_size,
            rank=self.trainer.global_rank,
            ranks=self.trainer.world_size,
        )
        start = self.trainer.global_step * batches.accumulation
        end = self.trainer.max_steps * batches.accumulation + 1  # never exhausted: max_steps ends the run
        return DataLoader(batches, batch_size=None, sampler=From(start, end), num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[Batch] | list[Batch]:
        """Return the loader of the validation rows, empty where the run has none."""
        if self.validation_stream is None:
            return []
        assert self.trainer is not None
        batches = ValidationBatches(
            self.validation_stream,
            self.objective,
            self.size,
            self.max_validation_rows,
            self.trainer.global_rank,
            self.trainer.world_size,
        )
        return DataLoader(batches, batch_size=None, sampler=From(0, len(batches)))
