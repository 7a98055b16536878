"""Checkpoints every n steps and at the end of a run, and when a stop signal ends it."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol, TypeVar

import lightning as L
from torch import Tensor

from pretrain.launch.run_folder import stopped
from pretrain.stop_signals import SAME_KEY_S, AskedToStop, end_at_once, handled_signals
from pretrain.training.callbacks import StepCallback
from pretrain.training.divergence import Rewind
from pretrain.training.lightning_module import TrainingModule
from pretrain.training.run_state import random_state, set_random_state
from pretrain.training.throughput import Throughput

_Result = TypeVar("_Result")


class Saver(Protocol):
    """Writes checkpoints, possibly in the background."""

    def save(self, step: int) -> None: ...
    def finish(self) -> None: ...
    def wait(self) -> str | None: ...


class Checkpoints(StepCallback):
    """Writes checkpoints through `saver`, and ends the run on a stop signal.

    The signal handlers set a flag. It is checked at the end of a step, after a save, at each batch of a validation on
    several processes, and after interruptible work (`interruptible`): the run is saved and raises Interrupted. In the
    first step and in a validation on one process the handlers raise AskedToStop, as these may wait for a compiler and
    change nothing that is saved. A second Ctrl-C ends the process at once.
    """

    def __init__(self, saver: Saver, throughput: Throughput, every_n_steps: int) -> None:
        self.saver = saver
        self.throughput = throughput
        self.every_n_steps = every_n_steps
        self._received_at = 0.0
        self._previous: dict[int, Any] = {}
        self._saved_at = -1
        self._raises = False  # whether the signal handlers raise
        self._random: dict[str, Tensor] | None = None  # random state at the start of a validation

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set the signal handlers before the first validation, if there is one."""
        self._begin(trainer, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set the signal handlers before the first step."""
        self._begin(trainer, pl_module)

    def _begin(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        self._saved_at = trainer.global_step  # nothing has changed since the run started or resumed
        self._raises = True
        if self._previous:
            return

        def note(number: int, frame: FrameType | None) -> None:
            again = pl_module.signal_received and time.monotonic() - self._received_at > SAME_KEY_S
            if again and number == signal.SIGINT:
                end_at_once(AskedToStop(number))
            if not pl_module.signal_received:
                pl_module.signal_received, self._received_at = number, time.monotonic()
                if self._raises:
                    raise AskedToStop(number)

        for number in handled_signals():
            self._previous[number] = signal.signal(number, note)

    def on_step_end(self, trainer: L.Trainer, module: TrainingModule) -> None:
        """Save every n steps and at the last."""
        step, self._raises = trainer.global_step, False
        if step % self.every_n_steps == 0 or step == trainer.max_steps:
            self._write(step, last=step == trainer.max_steps)
            self.agree_and_stop_if_asked(trainer, module)
        self.stop_if_asked(trainer, module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save a run that a user's callback has stopped early."""
        if trainer.global_step != self._saved_at:
            self.saver.save(trainer.global_step)
            self._saved_at = trainer.global_step
        self.saver.finish()  # also of a save that was begun before: its error is the run's

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let a signal end a validation on one process at once."""
        assert isinstance(pl_module, TrainingModule)
        if trainer.state.fn == "fit" and trainer.world_size == 1:
            self.agree_and_stop_if_asked(trainer, pl_module)
            self._random, self._raises = random_state(pl_module.device), True

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let no signal interrupt the computing and logging of the metrics."""
        self._raises = False

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Save and stop on a signal; several processes agree on it one batch later, without waiting."""
        assert isinstance(pl_module, TrainingModule)
        if trainer.state.fn == "fit":
            pl_module.finish_signal_reduction()
            self.stop_if_asked(trainer, pl_module)
            pl_module.start_signal_reduction()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Finish the last reduction of signals, and stop if a process received one."""
        assert isinstance(pl_module, TrainingModule)
        pl_module.finish_signal_reduction()
        self._random = None
        if trainer.state.fn == "fit":
            self.stop_if_asked(trainer, pl_module)

    def agree_and_stop_if_asked(self, trainer: L.Trainer, module: TrainingModule) -> None:
        """Agree on signals that arrived between two steps, and stop if there was one; a collective call."""
        module.agree_on_signal()
        self.stop_if_asked(trainer, module)

    def stop_if_asked(self, trainer: L.Trainer, module: TrainingModule) -> None:
        """Between two steps, save and raise Interrupted if the processes have agreed on a signal."""
        step, agreed = trainer.global_step, module.signal_agreed
        if agreed:
            self._write(step, last=True)
            raise stopped(AskedToStop(agreed), step)

    def _write(self, step: int, last: bool) -> None:
        with self.throughput.paused("checkpoints"):
            if step != self._saved_at:
                self.saver.save(step)
                self._saved_at = step
            if last:
                self.saver.finish()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Save if a signal interrupted a validation, and wait for a checkpoint that is being written."""
        self._raises = False
        if isinstance(exception, AskedToStop) and self._random is not None:
            set_random_state(self._random)
            self._write(trainer.global_step, last=True)
        self.saver.wait()
        self.teardown(trainer, pl_module, "fit")  # Lightning does not

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()


def interruptible(module: TrainingModule, work: Callable[[], _Result]) -> _Result | None:
    """Return the result of `work`, or None if a signal came before it or interrupted it.

    For work between steps that changes nothing that is saved: scores and samples, which one process makes while the
    others wait. The random generators are restored if a signal interrupts it. After the training, signals raise
    AskedToStop as anywhere else.
    """
    if module.trainer.state.fn != "fit":
        return work()
    if module.signal_received:
        return None
    is_working, previous = True, {int(number): signal.getsignal(number) for number in handled_signals()}
    state = random_state(module.device)

    def stop(number: int, frame: FrameType | None) -> None:
        handler = previous[number]
        if callable(handler):
            handler(number, frame)
        if is_working:
            raise AskedToStop(number)

    try:
        try:
            for number in previous:
                signal.signal(number, stop)
            return work()
        finally:
            is_working = False
    except AskedToStop:
        set_random_state(state)
        return None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def late_signals(module: TrainingModule) -> Iterator[None]:
    """End the run on a signal that came after the check of its last step, or before a rewind."""
    try:
        yield
    except Rewind:
        if module.signal_received:
            raise AskedToStop(module.signal_received) from None
        raise
    if module.signal_received:
        raise AskedToStop(module.signal_received)
