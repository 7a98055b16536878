"""Reading a streamed corpus while the run trains on it."""

import time
from collections.abc import Callable

import lightning as L
import torch

from pretrain.data.batch_sizes import BatchSizes
from pretrain.data.progress import minutes
from pretrain.data.streaming.corpus import POLL_S
from pretrain.data.streaming.dataset import StreamingDataset
from pretrain.data.streaming.read_ahead import ReadAhead
from pretrain.launch.rank import log
from pretrain.training.callbacks import StepCallback
from pretrain.training.lightning_module import TrainingModule
from pretrain.training.throughput import Throughput

LOG_S = 30.0  # between log lines while waiting


class TextAhead(StepCallback):
    """Waits between steps, on all processes alike, until the rows of the next step are available.

    Rank 0 starts and ends the reading process. On a signal while waiting, the run saves and ends as between any steps.
    """

    def __init__(
        self,
        rows: StreamingDataset,
        reader: ReadAhead,
        throughput: Throughput,
        stop_if_asked: Callable[[L.Trainer, TrainingModule], None],
        batch_sizes: BatchSizes,
    ) -> None:
        self.rows = rows
        self.reader = reader
        self.throughput = throughput
        self.stop_if_asked = stop_if_asked
        self.batch_sizes = batch_sizes
        self._available = 0  # samples that every process is known to have

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the reading process unless enough is read already, and wait for the first step's rows."""
        assert isinstance(pl_module, TrainingModule)
        if trainer.is_global_zero and self.rows.available() < self.reader.job.rows:
            self.reader.start()
        self.throughput.other_s["text"] = 0.0  # a streamed run reports this wait even if it is 0
        self._wait(trainer, pl_module)

    def on_step_end(self, trainer: L.Trainer, module: TrainingModule) -> None:
        """Wait for the rows of the next step, if there is one."""
        if trainer.global_step != trainer.max_steps:
            self._wait(trainer, module)

    def _wait(self, trainer: L.Trainer, module: TrainingModule) -> None:
        needed = self.batch_sizes.samples(trainer.global_step + 1)
        if self._is_available(trainer, module, needed):
            return
        since = logged_at = time.monotonic()
        with self.throughput.paused("text"):
            while not self._is_available(trainer, module, needed):
                self.stop_if_asked(trainer, module)
                self.reader.check()
                if time.monotonic() - logged_at > LOG_S:
                    logged_at = time.monotonic()
                    tokens, waited = self.rows.stream.n_tokens, minutes(logged_at - since)
                    log(f"step {trainer.global_step}: waiting for text, {tokens:,} tokens so far, for {waited} ...")
                time.sleep(POLL_S)

    def _is_available(self, trainer: L.Trainer, module: TrainingModule, needed: int) -> bool:
        """Return whether every process has `needed` samples; communicates only if that is not known yet."""
        if self._available < needed:
            self._available, module.signal_agreed = self._agree(trainer, module, needed)
        return self._available >= needed

    def _agree(self, trainer: L.Trainer, module: TrainingModule, needed: int) -> tuple[int, int]:
        """Return the number of samples that every process has, and a signal that one received, else 0."""
        self.rows.is_waiting(needed)  # raises if the text will never be read
        available = self.rows.available()
        if trainer.world_size == 1:
            return available, module.signal_received
        least = torch.tensor([-available, module.signal_received], device=module.device)
        torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MAX)
        return -int(least[0]), int(least[1])

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End the reading process."""
        self.reader.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """End the reading process when the run fails."""
        self.reader.stop()
