"""When a run ends: after so many steps or so much time, and where in between it stands."""

import time
from collections import deque
from typing import Any

from pretrain.checkpoint.read import Checkpoint
from pretrain.config.run import RunConfig
from pretrain.data.batch_sizes import BatchSizes


class RunLength:
    """The end of a run, by steps, by time, or by whichever comes first.

    The clock runs from the first step to the last, over validations, samples and checkpoints too. A schedule asks for
    `planned_steps`, so that by the clock as well it has come to its end when the run has.
    """

    def __init__(
        self, max_steps: int | None, max_seconds: float | None, seconds: float = 0.0, max_tokens: int | None = None,
        max_steps_typed: int | None = None,
    ) -> None:  # fmt: skip
        self.max_steps = max_steps
        self.max_tokens = max_tokens  # which the steps come of, where it ends the run before `max_steps_typed`
        self.max_steps_typed = max_steps if max_tokens is None else max_steps_typed
        self.max_seconds = max_seconds
        self.seconds = seconds  # so far, over the whole run: what was spent before a resume counts
        self._started_at: float | None = None
        self._steps: deque[float] = deque(maxlen=5)  # seconds of the newest steps

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds of the run so far."""
        return {"seconds": self.clock()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the seconds of `state`; after a rewind the later time stands, as time is not undone."""
        self.seconds = max(self.seconds, float(state.get("seconds", 0.0)))

    def start(self) -> None:
        """Start the clock, or go on."""
        self._started_at = time.perf_counter() - self.seconds

    def clock(self) -> float:
        """Return the seconds of the run so far, by this process's clock."""
        return self.seconds if self._started_at is None else time.perf_counter() - self._started_at

    def record_step(self, seconds: float) -> None:
        """Note that a step is about to end at this time, on which all processes agree."""
        self._steps.append(seconds - self.seconds)
        self.seconds = seconds

    def planned_steps(self, step: int) -> float:
        """Return how many steps the run will have at its present pace; `step` (from 0) is the one under way."""
        by_steps = float("inf") if self.max_steps is None else self.max_steps
        if self.max_seconds is None or self.seconds <= 0:
            return by_steps
        if self.is_last_step(step):
            return step + 1
        return min(by_steps, (step + 1) * self.max_seconds / self.seconds)

    def is_last_step(self, step: int) -> bool:
        """Return whether the step under way is the last: one more would take the run further beyond its time."""
        if self.max_steps is not None and step + 1 >= self.max_steps:
            return True
        # the shortest of the newest steps: a validation or a checkpoint may stand between two others
        return self.max_seconds is not None and self.seconds + min(self._steps, default=0) / 2 >= self.max_seconds

    def is_done(self, step: int) -> bool:
        """Return whether a run that has taken `step` steps has nothing left to do, not even half a step."""
        if self.max_steps is not None and step >= self.max_steps:
            return True
        return self.max_seconds is not None and self.seconds * (1 + 0.5 / max(1, step)) >= self.max_seconds

    def doubled(self, steps: int) -> str:
        """Return the settings that take a run of so many steps twice as far."""
        words = [] if self.max_tokens is None else [f"trainer.max_tokens={2 * self.max_tokens}"]
        words += [] if self.max_steps_typed is None else [f"trainer.max_steps={2 * steps}"]
        words += [] if self.max_seconds is None else [f"trainer.max_time={self.max_seconds / 30:g}"]
        return " ".join(words)

    def __str__(self) -> str:
        parts = [] if self.max_steps is None else [f"{self.max_steps:,} steps"]
        parts += [] if self.max_seconds is None else [f"{self.max_seconds / 60:g} minutes"]
        return " or ".join(parts)


def run_length(config: RunConfig, seconds: float = 0.0, batch_sizes: BatchSizes | None = None) -> RunLength:
    """Return the length of a run from its settings; `seconds` were spent on it before, with these `batch_sizes`."""
    trainer = config.trainer
    max_seconds = None if trainer.max_time is None else 60 * trainer.max_time
    typed = None if trainer.max_steps == -1 else trainer.max_steps
    return RunLength(config.max_steps(batch_sizes), max_seconds, seconds, trainer.max_tokens, typed)


def batch_sizes_of(config: RunConfig, resumed: Checkpoint | None) -> BatchSizes:
    """Return the batch sizes of a run, those before a resume among them; raises CheckpointError as `saved` does."""
    if resumed is None:
        return config.batch_sizes()
    saved = resumed.run_config()
    return BatchSizes.saved(resumed.progress, saved.step_size()).changed(resumed.step, config.step_size())
