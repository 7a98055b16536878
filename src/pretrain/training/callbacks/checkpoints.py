"""Saves the run every n steps and at its end, and ends it on a signal once it is saved."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol, TypeVar

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from pretrain.launch.run_folder import stopped
from pretrain.stop_signals import SAME_KEY_S, AskedToStop, end_at_once, heeded
from pretrain.training.divergence import Rewind
from pretrain.training.lightning_module import TrainingModule
from pretrain.training.run_state import random_state, set_random_state
from pretrain.training.throughput import Throughput

_Made = TypeVar("_Made")


class Saver(Protocol):
    """Writes checkpoints, perhaps in the background."""

    def save(self, step: int) -> None: ...
    def finish(self) -> None: ...
    def wait(self) -> str | None: ...


class Checkpoints(Callback):
    """Writes checkpoints through `saver`.

    The signal handlers set a flag. The end of a step looks at it, and so do a save, each batch of a validation by
    several processes, and what ends at once (`unless_asked`): the run is saved where it stands, and raises Interrupted.
    In the first step of a process and in a validation by one process the handlers raise AskedToStop, for these may wait
    for a compiler and change nothing that is saved. A second interrupt from the keyboard ends the process at once.
    """

    def __init__(self, saver: Saver, throughput: Throughput, every_n_steps: int) -> None:
        self.saver = saver
        self.throughput = throughput
        self.every_n_steps = every_n_steps
        self._received_at = 0.0
        self._previous: dict[int, Any] = {}
        self._saved_at = -1
        self._raises = False  # whether a signal ends what is under way
        self._random: dict[str, Tensor] | None = None  # the generators at the start of a validation

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over the signals before the first validation, where there is one."""
        self._begin(trainer, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over the signals before the first step."""
        self._begin(trainer, pl_module)

    def _begin(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_at = trainer.global_step  # nothing has changed since the run began or was resumed
        self._raises = True
        if not self._previous:
            self._take_over(pl_module)

    def _take_over(self, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)

        def note(number: int, frame: FrameType | None) -> None:
            again = pl_module.signal_received and time.monotonic() - self._received_at > SAME_KEY_S
            if again and number == signal.SIGINT:
                end_at_once(AskedToStop(number))
            if not pl_module.signal_received:
                pl_module.signal_received, self._received_at = number, time.monotonic()
                if self._raises:
                    raise AskedToStop(number)

        for number in heeded():
            self._previous[number] = signal.signal(number, note)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where it is time to, at the end of a step."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        step, self._raises = trainer.global_step, False
        if step % self.every_n_steps == 0 or step == trainer.max_steps:
            self._write(step, last=step == trainer.max_steps)
            self.stop_where_asked_meanwhile(trainer, pl_module)
        self.stop_where_asked(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save a run that ends early, because a callback of the user's own stopped the trainer."""
        if trainer.global_step != self._saved_at:
            self.saver.save(trainer.global_step)
            self._saved_at = trainer.global_step
            self.saver.finish()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let a signal end a validation of one process at once."""
        assert isinstance(pl_module, TrainingModule)
        if trainer.state.fn == "fit" and trainer.world_size == 1:
            self.stop_where_asked_meanwhile(trainer, pl_module)
            self._random, self._raises = random_state(pl_module.device), True

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let the figures of a validation be kept whole."""
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
        """Save and stop where all know of a signal; several processes hear of it a batch later, and never wait."""
        assert isinstance(pl_module, TrainingModule)
        if trainer.state.fn == "fit":
            pl_module.finish_signal_reduction()
            self.stop_where_asked(trainer, pl_module)
            pl_module.start_signal_reduction()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the last answer, and stop where all know of a signal."""
        assert isinstance(pl_module, TrainingModule)
        pl_module.finish_signal_reduction()
        self._random = None
        if trainer.state.fn == "fit":
            self.stop_where_asked(trainer, pl_module)

    def stop_where_asked_meanwhile(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ask all processes whether a signal came during what the step had to wait for, and stop where one did."""
        assert isinstance(pl_module, TrainingModule)
        pl_module.agree_on_signal()
        self.stop_where_asked(trainer, pl_module)

    def stop_where_asked(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Between two steps, save and raise Interrupted where all processes know of a signal."""
        assert isinstance(pl_module, TrainingModule)
        step, agreed = trainer.global_step, pl_module.signal_agreed
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
        """Save where a signal met a validation, and let a checkpoint being written be whole."""
        self._raises = False
        if isinstance(exception, AskedToStop) and self._random is not None:
            set_random_state(self._random)
            self._write(trainer.global_step, last=True)
        self.saver.wait()
        self.teardown(trainer, pl_module, "fit")  # Lightning does not

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()


def unless_asked(module: TrainingModule, work: Callable[[], _Made]) -> _Made | None:
    """Return what `work` makes; None where a signal came before, or ends it at once.

    For what changes nothing that is saved, beside steps: scores and samples, which one process makes while the others
    wait. It may draw from the random generators only as long as it puts them back. Behind the training, signals raise
    AskedToStop as anywhere else.
    """
    if module.trainer.state.fn != "fit":
        return work()
    if module.signal_received:
        return None
    inside, noting = True, {int(number): signal.getsignal(number) for number in heeded()}
    state = random_state(module.device)

    def stop(number: int, frame: FrameType | None) -> None:
        note = noting[number]
        if callable(note):
            note(number, frame)
        if inside:
            raise AskedToStop(number)

    try:
        try:
            for each in noting:
                signal.signal(each, stop)
            return work()
        finally:
            inside = False
    except AskedToStop:
        set_random_state(state)
        return None
    finally:
        for number, handler in noting.items():
            signal.signal(number, handler)


@contextmanager
def late_signals(module: TrainingModule) -> Iterator[None]:
    """Have a signal that no step was left to obey end the run as soon as its training has ended, or is to go back."""
    try:
        yield
    except Rewind:
        if module.signal_received:
            raise AskedToStop(module.signal_received) from None
        raise
    if module.signal_received:
        raise AskedToStop(module.signal_received)
