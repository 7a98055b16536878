"""Has the corpus read on while a streamed run trains, and waits for text where that is slower than the training."""

import time
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from pretrain.data.batch_sizes import BatchSizes
from pretrain.data.progress import minutes
from pretrain.data.streaming.dataset import POLL_S, StreamingDataset
from pretrain.data.streaming.read_ahead import ReadAhead
from pretrain.launch.rank import log
from pretrain.training.lightning_module import TrainingModule
from pretrain.training.throughput import Throughput

TELL_S = 30.0  # between words on waiting


class TextAhead(Callback):
    """Waits between steps, on all processes alike, until the rows of the next step are there.

    The first process of the run starts and ends the one that reads. Where a signal comes while waiting, the run saves
    and ends as it does at the end of any step.
    """

    def __init__(
        self,
        rows: StreamingDataset,
        reader: ReadAhead,
        throughput: Throughput,
        stop_where_asked: Callable[[L.Trainer, L.LightningModule], None],
        batch_sizes: BatchSizes,
    ) -> None:
        self.rows = rows
        self.reader = reader
        self.throughput = throughput
        self.stop_where_asked = stop_where_asked
        self.batch_sizes = batch_sizes
        self._there = 0  # draws that every process is known to have

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the process that reads, unless enough was read before, and wait for the first step's rows."""
        if trainer.is_global_zero and self.rows.available() < self.reader.rows:
            self.reader.start()
        self.throughput.other_s["text"] = 0.0  # of a streamed run it is shown, even where it never waits
        self._wait(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """At the end of a step, wait for the next one's rows."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and trainer.global_step != trainer.max_steps:
            self._wait(trainer, pl_module)

    def _wait(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, TrainingModule)
        needed = self.batch_sizes.samples(trainer.global_step + 1)
        if self._enough(trainer, module, needed):
            return
        since = told = time.monotonic()
        with self.throughput.paused("text"):
            while not self._enough(trainer, module, needed):
                self.stop_where_asked(trainer, module)
                self.reader.check()
                if time.monotonic() - told > TELL_S:
                    told = time.monotonic()
                    tokens, waited = self.rows.stream.n_tokens, minutes(told - since)
                    log(f"step {trainer.global_step}: waiting for text, {tokens:,} tokens so far, for {waited} ...")
                time.sleep(POLL_S)

    def _enough(self, trainer: L.Trainer, module: TrainingModule, needed: int) -> bool:
        """Return whether every process has so many draws; asks the others only where it does not know."""
        if self._there < needed:
            self._there, module.signal_agreed = self._agree(trainer, module, needed)
        return self._there >= needed

    def _agree(self, trainer: L.Trainer, module: TrainingModule, needed: int) -> tuple[int, int]:
        """Return how many draws every process has, and the signal that one of them received or 0; on all the same."""
        self.rows.is_waiting(needed)  # raises where they will not come
        available = self.rows.available()
        if trainer.world_size == 1:
            return available, module.signal_received
        least = torch.tensor([-available, module.signal_received], device=module.device)
        torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MAX)
        return -int(least[0]), int(least[1])

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End the process that reads."""
        self.reader.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """End the process that reads, also where the run fails."""
        self.reader.stop()
