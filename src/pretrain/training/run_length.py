"""The length of a run, in steps, tokens, epochs or time, and its progress."""

import time
from collections import deque
from typing import Any

from pretrain.checkpoint.read import Checkpoint
from pretrain.config.run import RunConfig
from pretrain.data.batch_sizes import BatchSizes
from pretrain.training.config import TrainerConfig


class RunLength:
    """Ends a run by steps or by time, whichever comes first.

    The clock runs from the first step to the last, including validations, samples and checkpoints. The learning-rate
    schedule uses `planned_steps`, so that it also completes in a run that ends by the clock.
    """

    def __init__(
        self, max_steps: int | None, max_seconds: float | None, seconds: float = 0.0,
        settings: TrainerConfig | None = None, rows_per_epoch: int | None = None,
    ) -> None:  # fmt: skip
        self.max_steps = max_steps
        self.settings = settings  # `max_steps` follows from them; None: it is the setting itself
        self.rows_per_epoch = rows_per_epoch  # None: unknown
        self.max_seconds = max_seconds
        self.seconds = seconds  # of the whole run so far, including those before a resume
        self._started_at: float | None = None
        self._steps: deque[float] = deque(maxlen=5)  # seconds of the newest steps

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds of the run so far."""
        return {"seconds": self.clock()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the seconds of the run; after a rewind the later time stays."""
        self.seconds = max(self.seconds, float(state.get("seconds", 0.0)))

    def start(self) -> None:
        """Start the clock at the seconds so far."""
        self._started_at = time.perf_counter() - self.seconds

    def clock(self) -> float:
        """Return the seconds of the run so far, by this process's clock."""
        return self.seconds if self._started_at is None else time.perf_counter() - self._started_at

    def record_step(self, seconds: float) -> None:
        """Record the time at which a step ends; `seconds` is the same on all processes."""
        self._steps.append(seconds - self.seconds)
        self.seconds = seconds

    def planned_steps(self, step: int) -> float:
        """Estimate the run's total number of steps at the current pace; `step` is the current step, from 0."""
        by_steps = float("inf") if self.max_steps is None else self.max_steps
        if self.max_seconds is None or self.seconds <= 0:
            return by_steps
        if self.is_last_step(step):
            return step + 1
        return min(by_steps, (step + 1) * self.max_seconds / self.seconds)

    def is_last_step(self, step: int) -> bool:
        """Return whether the current step is the last: the next would end more than half a step too late."""
        if self.max_steps is not None and step + 1 >= self.max_steps:
            return True
        # the shortest of the newest steps: others may include a validation or a checkpoint
        return self.max_seconds is not None and self.seconds + min(self._steps, default=0) / 2 >= self.max_seconds

    def is_done(self, step: int) -> bool:
        """Return whether a run after `step` steps has less than half a step left to do."""
        if self.max_steps is not None and step >= self.max_steps:
            return True
        return self.max_seconds is not None and self.seconds * (1 + 0.5 / max(1, step)) >= self.max_seconds

    def doubled(self, steps: int) -> str:
        """Return the settings that double the length of a run after `steps` steps."""
        settings = self.settings
        max_steps, tokens, epochs = self.max_steps, None, None
        if settings is not None:
            max_steps = None if settings.max_steps == -1 else settings.max_steps
            tokens, epochs = settings.max_tokens, settings.max_epochs
        words = [] if tokens is None else [f"trainer.max_tokens={2 * tokens}"]
        words += [] if epochs is None else [f"trainer.max_epochs={2 * epochs:.12g}"]
        words += [] if max_steps is None else [f"trainer.max_steps={max(2 * steps, max_steps)}"]  # cut by the clock
        words += [] if self.max_seconds is None else [f"trainer.max_time={self.max_seconds / 30:g}"]
        return " ".join(words)

    def __str__(self) -> str:
        parts = [] if self.max_steps is None else [f"{self.max_steps:,} steps"]
        parts += [] if self.max_seconds is None else [f"{self.max_seconds / 60:g} minutes"]
        return " or ".join(parts)


def run_length(
    config: RunConfig, seconds: float = 0.0, batch_sizes: BatchSizes | None = None, rows_per_epoch: int | None = None
) -> RunLength:
    """Return the length of a run from its settings, its seconds and batch sizes so far, and the rows of an epoch."""
    trainer = config.trainer
    max_seconds = None if trainer.max_time is None else 60 * trainer.max_time
    return RunLength(config.max_steps(batch_sizes, rows_per_epoch), max_seconds, seconds, trainer, rows_per_epoch)


def batch_sizes_of(config: RunConfig, resumed: Checkpoint | None) -> BatchSizes:
    """Return the batch sizes of a run, including those before a resume; raises CheckpointError like `saved`."""
    if resumed is None:
        return config.batch_sizes()
    saved = resumed.run_config()
    return BatchSizes.saved(resumed.progress, saved.step_size()).changed(resumed.step, config.step_size())
