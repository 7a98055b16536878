"""Saves the run every n steps and at its end, and ends it on a signal once it is saved."""

import signal
import time
from types import FrameType
from typing import Any, Protocol

import lightning as L
from lightning.pytorch.callbacks import Callback

from pretrain.errors import Interrupted
from pretrain.training.module import STOP_SIGNALS, TrainingModule
from pretrain.training.throughput import Throughput

_SAME_KEY_S = 1.0  # one Ctrl-C reaches a process twice, from the terminal and from its launcher


class Saver(Protocol):
    """Writes checkpoints, perhaps in the background."""

    def save(self, step: int) -> None: ...
    def finish(self) -> None: ...
    def wait(self) -> str | None: ...


class Checkpoints(Callback):
    """Writes checkpoints through `saver`.

    The signal handlers only set a flag; the end of the step looks at it, saves, and raises Interrupted. A second
    interrupt from the keyboard ends the process at once, with what was last saved.
    """

    def __init__(self, saver: Saver, throughput: Throughput, every_n_steps: int) -> None:
        self.saver = saver
        self.throughput = throughput
        self.every_n_steps = every_n_steps
        self._received_at = 0.0
        self._previous: dict[int, Any] = {}
        self._saved_at = -1

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over the signals before the first validation, where there is one."""
        self._take_over(pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over the signals, after Lightning has set handlers of its own."""
        self._saved_at = trainer.global_step
        if not self._previous:
            self._take_over(pl_module)

    def _take_over(self, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)

        def note(number: int, frame: FrameType | None) -> None:
            again = pl_module.signal_received and time.monotonic() - self._received_at > _SAME_KEY_S
            if again and number == signal.SIGINT:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                signal.raise_signal(signal.SIGINT)
            if not pl_module.signal_received:
                pl_module.signal_received, self._received_at = number, time.monotonic()

        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, note)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where it is time to, at the end of a step."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        step = trainer.global_step
        if step % self.every_n_steps == 0 or step == trainer.max_steps:
            self._write(step, last=step == trainer.max_steps)
        self.stop_where_asked(trainer, pl_module)

    def stop_where_asked(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Between two steps, save and raise Interrupted where all processes know of a signal."""
        assert isinstance(pl_module, TrainingModule)
        step, agreed = trainer.global_step, pl_module.signal_agreed
        if agreed:
            self._write(step, last=True)
        if agreed and step != trainer.max_steps:
            left = "saved; go on with resume=auto" if step else "nothing was trained yet"
            message = f"{signal.Signals(agreed).name} at step {step}: {left}"
            raise Interrupted(message, signal.SIGINT if agreed == signal.SIGINT else signal.SIGTERM)

    def _write(self, step: int, last: bool) -> None:
        with self.throughput.paused("checkpoints"):
            if step != self._saved_at:
                self.saver.save(step)
                self._saved_at = step
            if last:
                self.saver.finish()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Let a checkpoint that is being written be whole before the process ends."""
        self.saver.wait()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
