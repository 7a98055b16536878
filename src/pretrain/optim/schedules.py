"""Settings of the learning rate over a run: each schedule is a function of the step alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pretrain.errors import ConfigError

if TYPE_CHECKING:
    pass


@dataclass
class ScheduleConfig:
    """What every schedule has in common: a linear warm-up to the height, which its last step has.

    A run of N steps has the steps 0 to N - 1. From the warm-up on, the rate never jumps: each schedule begins its
    course at the height, also where its decay would begin before the warm-up ends.
    """

    kind: str = "?"
    warmup_steps: int = 100
    warmup_tokens: int | None = None  # read in the warm-up, instead of a number of steps

    def __post_init__(self) -> None:
        for name in ("warmup_steps", "warmup_tokens"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"schedule.{name}={getattr(self, name)} is negative. Try schedule.{name}=0.")

    def share(self, step: int, max_steps: float) -> float:
        """Return the learning rate of optimizer step `step` (from 0) as a share of its height.

        `max_steps` is the length of the run, or what it will come to at its present pace where it ends by the clock.
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        return self.after_warmup(step, max_steps)

    def after_warmup(self, step: int, max_steps: float) -> float:
        """Return the share of the learning rate at a step behind the warm-up."""
        raise TypeError(f"schedule {self.kind!r} has no course")


@dataclass
class CosineConfig(ScheduleConfig):
    """Half a cosine from the height to `min_lr_ratio` of it (Loshchilov and Hutter 2017, arxiv.org/abs/1608.03983).

    It would reach `min_lr_ratio` at the step behind the last. With n steps behind the warm-up, the last step has
    min_lr_ratio + (1 - min_lr_ratio) (1 - cos(pi / n)) / 2, which is above it by a 1 / n^2 part: no step is lost to a
    rate of 0.
    """

    kind: str = "cosine"
    min_lr_ratio: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_min_lr_ratio(self.min_lr_ratio, 0.1)

    def after_warmup(self, step: int, max_steps: float) -> float:
        progress = min(1.0, (step - self.warmup_steps) / max(1, max_steps - self.warmup_steps))
        return self.min_lr_ratio + (1.0 - self.min_lr_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass
class WSDConfig(ScheduleConfig):
    """Warm-up, stable, decay: the height until the last `decay_fraction` of the steps, then a line to `min_lr_ratio`.

    The line would reach `min_lr_ratio` at the step behind the last. With n steps of decay, the last step has
    min_lr_ratio + (1 - min_lr_ratio) / n. Where the warm-up reaches into the decay, the decay begins behind it and is
    as much shorter.
    Source: Hu et al. 2024, https://arxiv.org/abs/2404.06395, section 4; a linear decay as in Haegele et al. 2024,
    https://arxiv.org/abs/2405.18392.
    """

    kind: str = "wsd"
    decay_fraction: float = 0.2
    min_lr_ratio: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.decay_fraction <= 1.0:
            raise ConfigError(
                f"schedule.decay_fraction={self.decay_fraction} is not a share above 0 and up to 1. "
                "Try schedule.decay_fraction=0.2."
            )
        _check_min_lr_ratio(self.min_lr_ratio, 0.0)

    def after_warmup(self, step: int, max_steps: float) -> float:
        left = min(1.0, max(0.0, (max_steps - step) / self.decay_steps(max_steps))) if max_steps < math.inf else 1.0
        return self.min_lr_ratio + (1.0 - self.min_lr_ratio) * left

    def decay_steps(self, max_steps: float) -> float:
        """Return the steps of the decay: those that `decay_fraction` asks for, as far as the warm-up leaves them."""
        return max(1, min(round(self.decay_fraction * max_steps), max_steps - self.warmup_steps))


def _check_min_lr_ratio(share: float, usual: float) -> None:
    if not 0.0 <= share <= 1.0:
        raise ConfigError(
            f"schedule.min_lr_ratio={share} is not a share from 0 to 1. Try schedule.min_lr_ratio={usual}."
        )


@dataclass
class LinearConfig(ScheduleConfig):
    """A straight line from the height to `min_lr_ratio` of it at the last step, as BERT was trained.

    The first step behind the warm-up has the height, the last one `min_lr_ratio` of it: 0 as a rule, so that this step
    changes nothing. A run with one step behind its warm-up takes it at the height.
    """

    kind: str = "linear"
    min_lr_ratio: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_min_lr_ratio(self.min_lr_ratio, 0.0)

    def after_warmup(self, step: int, max_steps: float) -> float:
        progress = min(1.0, (step - self.warmup_steps) / max(1, max_steps - 1 - self.warmup_steps))
        return 1.0 - (1.0 - self.min_lr_ratio) * progress


@dataclass
class ConstantConfig(ScheduleConfig):
    """The height from the end of the warm-up on, to the last step."""

    kind: str = "constant"

    def after_warmup(self, step: int, max_steps: float) -> float:
        return 1.0
