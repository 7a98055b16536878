"""The length of a run, in steps, tokens, epochs or time, and its progress."""

import time
from collections import deque
from dataclasses import replace
from typing import Any

from pretrain.checkpoint.read import Checkpoint
from pretrain.config.run import RunConfig
from pretrain.config.stages import Course, Stage, course_of
from pretrain.data.batch_sizes import BatchSizes
from pretrain.launch.resume import saved_sizes
from pretrain.optim.schedules import ScheduleConfig
from pretrain.training.config import TrainerConfig


class RunLength:
    """Ends a run by steps or by time, whichever comes first.

    The clock runs from the first step to the last, including validations, samples and checkpoints. The learning-rate
    schedule uses `planned_steps`, so that it also completes in a run that ends by the clock.
    """

    def __init__(
        self, max_steps: int | None, max_seconds: float | None, seconds: float = 0.0,
        settings: TrainerConfig | None = None, rows_per_epoch: int | None = None, stage: Stage | None = None,
    ) -> None:  # fmt: skip
        self.max_steps = max_steps
        self.stage = stage  # that is trained now; None: the run has one
        self.settings = settings  # `max_steps` follows from them; None: it is the setting itself
        self.rows_per_epoch = rows_per_epoch  # None: unknown
        self.max_seconds = max_seconds
        self.seconds = seconds  # of the whole run so far, including those before a resume
        self._started_at: float | None = None
        self._steps: deque[float] = deque(maxlen=5)  # seconds of the newest steps

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds of the run so far, and the step at which it ends; None: at no step."""
        return {"seconds": self.clock(), "max_steps": self.max_steps}

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

    def share_done(self, step: int) -> float:
        """Return the share of the run that is done after `step` steps, from 0 to 1, at the current pace."""
        return min(1.0, step / self.planned_steps(max(0, step - 1)))

    @property
    def last_step(self) -> int | None:
        """The step at which this training ends: the run, or its stage; None: at no step."""
        ends = (self.max_steps, None if self.stage is None else self.stage.end)
        return min((end for end in ends if end is not None), default=None)

    def position(self, step: int) -> tuple[int, float]:
        """Return where the schedule is at a step (from 0) and how long it is, in steps: of the run, or of its stage."""
        stage = self.stage
        if stage is None or not stage.own_schedule:
            return step, self.planned_steps(step)
        end = self.planned_steps(step) if stage.end is None else min(self.planned_steps(step), stage.end)
        return step - stage.begin, end - stage.begin

    def ends_stage(self, step: int) -> bool:
        """Return whether a stage, and not the run, has ended after `step` steps."""
        end = None if self.stage is None else self.stage.end
        return end is not None and step >= end and not self.is_done(step)

    def is_last_step(self, step: int) -> bool:
        """Return whether the current step is the last: the next would end more than half a step too late."""
        if self.last_step is not None and step + 1 >= self.last_step:
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
    stage: Stage, seconds: float = 0.0, batch_sizes: BatchSizes | None = None, rows_per_epoch: int | None = None
) -> RunLength:
    """Return the length of a run in one of its stages, from its seconds, batch sizes and rows of an epoch."""
    trainer = stage.config.trainer
    max_seconds = None if trainer.max_time is None else 60 * trainer.max_time
    max_steps = stage.config.max_steps(batch_sizes, rows_per_epoch)
    return RunLength(max_steps, max_seconds, seconds, trainer, rows_per_epoch, stage)


def schedule_of(length: RunLength, batch_sizes: BatchSizes) -> ScheduleConfig:
    """Return the schedule of a run or of its stage, with the warm-up in steps."""
    stage = length.stage
    assert stage is not None
    config = stage.config
    begin = stage.begin if stage.own_schedule else 0
    if not begin or config.schedule.warmup_tokens is None:
        return replace(config.schedule, warmup_steps=config.warmup_steps(batch_sizes))
    tokens = batch_sizes.tokens(begin) + config.schedule.warmup_tokens
    return replace(config.schedule, warmup_steps=batch_sizes.steps_to(tokens) - begin)


def course_from(config: RunConfig, resumed: Checkpoint | None) -> Course:
    """Return the stages of a run after the checkpoint that it resumes; raises CheckpointError like `saved_sizes`."""
    return course_of(config) if resumed is None else course_of(config, saved_sizes(resumed), resumed.step)
