"""The progress bar: step, loss, tokens per second, time left."""

import math
import sys
import time
from collections.abc import Callable
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

from pretrain.errors import printable
from pretrain.launch.rank import log
from pretrain.training.callbacks.metrics import Metrics
from pretrain.training.lightning_module import TrainingModule

FREE_LINES = 100  # of a log
PAUSE_S = 30.0  # between those behind them


class PacedLog:
    """Prints lines where the output is no terminal: a hundred, then at most one in 30 s, for a log is read afterwards.

    What must not be lost waits for the next line and stands behind it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._lines = 0
        self._printed_at = 0.0
        self._held = ""

    def write(self, line: str, *, last: bool = False, kept: bool = False) -> None:
        """Print a line if it is time to, or the `last` of all; else drop it, or have it wait where it is `kept`."""
        now = self.clock()
        if self._lines >= FREE_LINES and now - self._printed_at < PAUSE_S and not last:
            self._held = f"  ({line})" if kept else self._held
            return
        log(line if kept else f"{line}{self._held}")
        self._lines, self._printed_at, self._held = self._lines + 1, now, ""


class Progress(Callback):
    """A bar over optimizer steps; where the output is no terminal, lines at logged steps instead."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self.bar: Any = None
        self._shown: dict[str, float] = {}
        self._first_step = 0
        self._log = PacedLog()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the bar from the run's step on."""
        self._first_step = trainer.global_step
        self._shown = self.metrics.newest
        if sys.stderr.isatty():
            first = trainer.global_step
            self.bar = tqdm(
                total=self._planned(trainer), initial=first, unit="step", dynamic_ncols=True, smoothing=0.05
            )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance at the end of a step."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        fresh = self.metrics.newest is not self._shown
        if self.bar is not None:
            self.bar.total = self._planned(trainer)
            self.bar.update(trainer.global_step - self.bar.n)
            if fresh:
                self.bar.set_postfix_str(self._figures(), refresh=False)
        elif fresh and trainer.is_global_zero:
            place = f"step {trainer.global_step}/{self._planned(trainer)}"
            line = f"{place}  {self._figures()}{self._left(trainer)}"
            self._log.write(line, last=trainer.global_step == trainer.max_steps)
        self._shown = self.metrics.newest

    def _figures(self) -> str:
        newest = self.metrics.newest
        loss = f"{newest['train/loss']:.3f}" if "train/loss" in newest else "none"  # every step since was skipped
        return f"loss {loss}  {newest['speed/tokens_per_s']:,.0f} tokens/s"

    def _planned(self, trainer: L.Trainer) -> int:
        """Return the steps of the whole run; where it ends by the clock, what it will come to at this pace."""
        if trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
            return trainer.max_steps
        module = trainer.lightning_module
        assert isinstance(module, TrainingModule)
        planned = module.length.planned_steps(max(0, trainer.global_step - 1))
        return trainer.global_step if math.isinf(planned) else round(planned)

    def _left(self, trainer: L.Trainer) -> str:
        per_step = self.metrics.throughput.training_s / max(1, trainer.global_step - self._first_step)
        seconds = per_step * (self._planned(trainer) - trainer.global_step)
        return f"  {int(seconds) // 60}:{int(seconds) % 60:02d} left"

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the validation loss on a line of its own."""
        assert isinstance(pl_module, TrainingModule)
        under_way = trainer.state.fn == "fit"  # `trainer.training` is false meanwhile
        if under_way and trainer.is_global_zero and "val/loss" in pl_module.validated:
            figures = pl_module.validated
            per_byte = f"  bits per byte {figures['val/bits_per_byte']:.3f}" if "val/bits_per_byte" in figures else ""
            accuracy = f"  accuracy {figures['val/accuracy']:.1%}"
            line = f"step {trainer.global_step}: validation loss {figures['val/loss']:.4f}{per_byte}{accuracy}"
            if self.bar is not None:
                tqdm.write(printable(line), file=sys.stderr)
            else:
                self._log.write(line, kept=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the bar as it is."""
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave the bar as it is, so that the message stands on a line of its own."""
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
