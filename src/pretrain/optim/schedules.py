"""Settings of the learning rate over a run: each schedule is a function of the step alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum
from typing import ClassVar

from pretrain.config.setting import Settings, setting
from pretrain.errors import ConfigError


@dataclass
class ScheduleConfig(Settings):
    """Settings that all schedules share: a linear warm-up, whose last step has the peak rate.

    A schedule of your own is a subclass with a `kind` and `after_warmup()`, a function of the step alone.

    A run of N steps has the steps 0 to N - 1. The rate never jumps after the warm-up: each schedule begins at the
    peak, also where its decay would begin before the warm-up ends.
    """

    prefix: ClassVar[str] = "schedule."
    kind: str = "?"
    warmup_steps: int = setting(
        100, "Steps over which the learning rate rises to its peak.", bounds="[0, inf)", unit="optimizer steps",
        example=0,
    )  # fmt: skip
    warmup_tokens: int | None = setting(
        None, "Length of the warm-up in tokens, instead of warmup_steps.", bounds="[0, inf)", unit="tokens", example=0
    )
    warmup_fraction: float | None = setting(
        None, "Length of the warm-up as a part of the run (of its time, by the clock), instead of warmup_steps.",
        bounds="[0.0, 1.0)", example=0.02,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_tokens is not None and self.warmup_fraction is not None:
            raise ConfigError(
                f"schedule.warmup_tokens={self.warmup_tokens} and schedule.warmup_fraction={self.warmup_fraction:g} "
                f"give one warm-up in two ways. Give only one, such as "
                f"schedule.warmup_fraction={self.warmup_fraction:g} schedule.warmup_tokens=null."
            )

    def lr_multiplier(self, step: int, max_steps: float) -> float:
        """Return the learning rate of optimizer step `step` (from 0) over its peak.

        `max_steps` is the length of the run; where the run ends by the clock, its estimate at the current pace. Before
        there is an estimate (infinity), a warm-up in parts of the run starts as one of `warmup_steps` does.
        """
        if self.warmup_fraction is not None:
            in_steps = replace(self, warmup_steps=self.warmup_of(max_steps), warmup_fraction=None)
            return in_steps.lr_multiplier(step, max_steps)
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        return self.after_warmup(step, max_steps)

    def warmup_of(self, max_steps: float | None) -> int:
        """Return the steps of the warm-up of a run of `max_steps` steps; None or infinity: unknown."""
        if self.warmup_fraction is None or max_steps is None or math.isinf(max_steps):
            return self.warmup_steps
        return round(self.warmup_fraction * max_steps)

    def after_warmup(self, step: int, max_steps: float) -> float:
        """Return the learning rate over its peak at a step after the warm-up."""
        raise TypeError(f"schedule {self.kind!r} has no after_warmup()")

    def shortened_decay(self, steps: int) -> str | None:
        """Return a warning if the warm-up of a run of `steps` leaves fewer steps for the decay than set."""
        return None


@dataclass
class CosineConfig(ScheduleConfig):
    """Half a cosine from the peak to `min_lr_ratio` of it (Loshchilov and Hutter 2017, arxiv.org/abs/1608.03983).

    It would reach `min_lr_ratio` at the step after the last. With n steps after the warm-up, the last step has
    min_lr_ratio + (1 - min_lr_ratio) (1 - cos(pi / n)) / 2, above it by a part of order 1 / n^2: no step has rate 0.
    """

    kind: str = "cosine"
    min_lr_ratio: float = setting(0.1, "Learning rate at the end over its peak.", bounds="[0.0, 1.0]")

    def after_warmup(self, step: int, max_steps: float) -> float:
        progress = min(1.0, (step - self.warmup_steps) / max(1, max_steps - self.warmup_steps))
        return self.min_lr_ratio + (1.0 - self.min_lr_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))


class Decay(Enum):
    """Form of a decay."""

    linear = "linear"
    one_minus_sqrt = "one_minus_sqrt"


@dataclass
class WSDConfig(ScheduleConfig):
    """Warm-up, stable, decay: the peak until the last `decay_fraction` of the steps, then a fall to `min_lr_ratio`.

    It would reach `min_lr_ratio` at the step after the last. The last of n steps of decay has
    min_lr_ratio + (1 - min_lr_ratio) / n on a line, and min_lr_ratio + (1 - min_lr_ratio) (1 - sqrt(1 - 1 / n)) along
    1 - sqrt. Where the warm-up ends after the decay should begin, the decay begins with the first step after the
    warm-up and is as much shorter.
    Source: Hu et al. 2024, https://arxiv.org/abs/2404.06395, section 4; both forms of the decay: Haegele et al. 2024,
    https://arxiv.org/abs/2405.18392, which finds 1 - sqrt the better one.
    """

    kind: str = "wsd"
    decay_fraction: float = setting(0.2, "Part of the run's steps over which the rate decays.", bounds="(0.0, 1.0]")
    min_lr_ratio: float = setting(0.0, "Learning rate at the end over its peak.", bounds="[0.0, 1.0]")
    decay: Decay = setting(
        Decay.linear, "Form of the decay: a line, or 1 - sqrt(part of the decay), which falls fast at first."
    )

    def after_warmup(self, step: int, max_steps: float) -> float:
        left = min(1.0, max(0.0, (max_steps - step) / self.decay_steps(max_steps))) if max_steps < math.inf else 1.0
        if self.decay is Decay.one_minus_sqrt:
            left = 1.0 - math.sqrt(1.0 - left)
        return self.min_lr_ratio + (1.0 - self.min_lr_ratio) * left

    def shortened_decay(self, steps: int) -> str | None:
        remaining, requested = steps - self.warmup_steps, round(self.decay_fraction * steps)
        if requested <= remaining:
            return None
        return (
            f"schedule.decay_fraction={self.decay_fraction:g} asks for {requested:,} steps of decay, and the warm-up "
            f"of {self.warmup_steps:,} steps leaves {remaining:,} of {steps:,}: the decay takes those."
        )

    def decay_steps(self, max_steps: float) -> float:
        """Return the number of steps of the decay: `decay_fraction` of all, at most those after the warm-up."""
        return max(1, min(round(self.decay_fraction * max_steps), max_steps - self.warmup_steps))


@dataclass
class LinearConfig(ScheduleConfig):
    """A straight line from the peak to `min_lr_ratio` of it at the last step, as BERT was trained.

    The first step after the warm-up has the peak rate, the last one `min_lr_ratio` of it: 0 as a rule, so that this
    step changes nothing. A run with one step after its warm-up takes it at the peak.
    """

    kind: str = "linear"
    min_lr_ratio: float = setting(0.0, "Learning rate at the end over its peak.", bounds="[0.0, 1.0]")

    def after_warmup(self, step: int, max_steps: float) -> float:
        progress = min(1.0, (step - self.warmup_steps) / max(1, max_steps - 1 - self.warmup_steps))
        return 1.0 - (1.0 - self.min_lr_ratio) * progress


@dataclass
class ConstantConfig(ScheduleConfig):
    """The peak rate from the end of the warm-up to the last step."""

    kind: str = "constant"

    def after_warmup(self, step: int, max_steps: float) -> float:
        return 1.0
