"""Saves the run every n steps and at its end, and ends it on a signal once it is saved."""

import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from pretrain.errors import Interrupted
from pretrain.training.throughput import Throughput

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Checkpoints(Callback):
    """Writes checkpoints through `save`, which takes the step and returns the folder.

    The signal handlers only set a flag; the end of the step looks at it, saves, and raises Interrupted. A second
    interrupt from the keyboard ends the process at once, with what was last saved.
    """

    def __init__(self, save: Callable[[int], Path], throughput: Throughput, every_n_steps: int) -> None:
        self.save = save
        self.throughput = throughput
        self.every_n_steps = every_n_steps
        self.signal_received: int | None = None
        self._previous: dict[int, Any] = {}
        self._saved_at = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over the signals, after Lightning has set handlers of its own."""
        self._saved_at = trainer.global_step
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal_received is not None and number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
        self.signal_received = number

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where it is time to, at the end of a step."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        step = trainer.global_step
        if self.signal_received is not None or step % self.every_n_steps == 0 or step == trainer.max_steps:
            self._write(step)
        if self.signal_received is not None and step < trainer.max_steps:
            name = signal.Signals(self.signal_received).name
            raise Interrupted(f"{name} at step {step}: saved; go on with resume=auto", self.signal_received)

    def _write(self, step: int) -> None:
        if step != self._saved_at:
            with self.throughput.paused():
                self.save(step)
            self._saved_at = step

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
