"""The progress bar: step, loss, tokens per second, time left."""

import math
import sys
import time
from collections.abc import Callable
from typing import Any

import lightning as L
from tqdm import tqdm

from pretrain.data.progress import minutes
from pretrain.errors import printable
from pretrain.launch.rank import log
from pretrain.launch.train_log import log_unseen
from pretrain.training.callbacks import StepCallback
from pretrain.training.callbacks.metrics import Metrics
from pretrain.training.lightning_module import TrainingModule

UNPACED_LINES = 100  # printed without a pause
PAUSE_S = 30.0  # between later lines
SLOW_S = 30.0  # until the first line of figures, from which on the time of the first step is said before it


class PacedLog:
    """Prints a hundred lines, then at most one in 30 s, so that a log file stays readable.

    A line that must be kept is appended to the next printed one.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, to: Callable[[str], None] = log) -> None:
        self.clock = clock
        self._to = to
        self._lines = 0
        self._printed_at = 0.0
        self._pending = ""

    def write(self, line: str, *, last: bool = False, keep: bool = False) -> None:
        """Print a line if its time has come or it is the `last`; else drop it, or with `keep` append it to the next."""
        now = self.clock()
        if self._lines >= UNPACED_LINES and now - self._printed_at < PAUSE_S and not last:
            self._pending = f"  ({line})" if keep else self._pending
            return
        self._to(line if keep else f"{line}{self._pending}")
        self._lines, self._printed_at, self._pending = self._lines + 1, now, ""


def first_step_line(taken_s: float, steps: int, left: str) -> str:
    """Return how long the first step took, where the next line comes only `steps` later and late; else nothing."""
    if steps * taken_s < SLOW_S:
        return ""
    return f"the first step took {taken_s:.0f} s; the next line comes in about {minutes(steps * taken_s)}{left}"


class Progress(StepCallback):
    """Shows a bar over optimizer steps on a terminal, and prints a line per logged step elsewhere."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self.bar: Any = None
        self._shown: dict[str, float] = {}
        self._first_step = 0
        self._first_s = 0.0  # in steps before: of stages, or before a rewind
        self._log = PacedLog()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the bar from the run's step on."""
        self._first_step = trainer.global_step
        self._first_s = self.metrics.throughput.training_s
        self._shown = self.metrics.newest
        if sys.stderr.isatty():
            total, first = self._planned_steps(trainer), trainer.global_step
            self._log = PacedLog(to=log_unseen)  # the lines that stand in a log instead of the bar
            self.bar = tqdm(total=total, initial=first, unit="step", dynamic_ncols=True, smoothing=0.05)

    def on_step_end(self, trainer: L.Trainer, module: TrainingModule) -> None:
        """Advance the bar, or print a line if metrics were logged."""
        is_new = self.metrics.newest is not self._shown
        if self.bar is not None:
            self.bar.total = self._planned_steps(trainer)
            self.bar.update(trainer.global_step - self.bar.n)
            if is_new:
                self.bar.set_postfix_str(self._metrics_text(), refresh=False)
        elif not is_new and trainer.is_global_zero and trainer.global_step == self._first_step + 1:
            taken = self.metrics.throughput.training_s - self._first_s
            if line := first_step_line(taken, self._to_next_line(trainer), self._time_left(trainer)):
                self._log.write(line, keep=True)
        if is_new and trainer.is_global_zero:
            step = f"step {trainer.global_step}/{self._planned_steps(trainer)}"
            stage = module.length.stage
            name = f"  {stage.name}" if stage is not None and stage.name else ""
            line = f"{step}{name}  {self._metrics_text()}{self._time_left(trainer)}"
            self._log.write(line, last=trainer.global_step == trainer.max_steps)
        self._shown = self.metrics.newest

    def _to_next_line(self, trainer: L.Trainer) -> int:
        every = self.metrics.every_n_steps
        return min(every - trainer.global_step % every, self._planned_steps(trainer) - trainer.global_step)

    def _metrics_text(self) -> str:
        newest = self.metrics.newest
        loss = f"{newest['train/loss']:.3f}" if "train/loss" in newest else "none"  # every step since was skipped
        return f"loss {loss}  {newest['speed/tokens_per_s']:,.0f} tokens/s"

    def _planned_steps(self, trainer: L.Trainer) -> int:
        """Return the run's number of steps, estimated from its pace if it ends by the clock."""
        module = trainer.lightning_module
        assert isinstance(module, TrainingModule)
        ended = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
        if ended and not module.length.ends_stage(trainer.global_step):
            return trainer.max_steps
        planned = module.length.planned_steps(max(0, trainer.global_step - 1))
        return trainer.global_step if math.isinf(planned) else round(planned)

    def _time_left(self, trainer: L.Trainer) -> str:
        taken = self.metrics.throughput.training_s - self._first_s
        per_step = taken / max(1, trainer.global_step - self._first_step)
        seconds = per_step * (self._planned_steps(trainer) - trainer.global_step)
        return f"  {minutes(seconds)} left"

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the validation loss on a line of its own."""
        assert isinstance(pl_module, TrainingModule)
        in_fit = trainer.state.fn == "fit"  # `trainer.training` is false during validation
        if in_fit and trainer.is_global_zero and "val/loss" in pl_module.validated:
            metrics = pl_module.validated
            per_byte = f"  bits per byte {metrics['val/bits_per_byte']:.3f}" if "val/bits_per_byte" in metrics else ""
            if "val/bits_per_byte_bound" in metrics:
                per_byte = f"  bits per byte at most {metrics['val/bits_per_byte_bound']:.3f}"
            loss = f"validation loss {metrics['val/loss']:.4f}{' (bound)' * ('val/loss_bound' in metrics)}"
            if "val/loss_ema" in metrics:
                loss += f", of the average of the weights {metrics['val/loss_ema']:.4f}"
            if "val/pearson" in metrics:
                last = f"Pearson {metrics['val/pearson']:.3f}  Spearman {metrics['val/spearman']:.3f}"
            else:
                last = f"accuracy {metrics['val/accuracy']:.1%}"
            line = f"step {trainer.global_step}: {loss}{per_byte}  {last}"
            if self.bar is not None:
                tqdm.write(printable(line), file=sys.stderr)
            else:
                self._log.write(line, keep=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the bar as it stands."""
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Close the bar as it stands, so that the error message gets a line of its own."""
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
