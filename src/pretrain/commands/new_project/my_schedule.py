"""A schedule of your own: half a cosine wave, from the peak of the learning rate down to nothing.

`plugins=[my_schedule]` imports this file, which registers the class; then `schedule=half_wave` chooses it.
"""

import math
from dataclasses import dataclass

from pretrain.config.registry import register
from pretrain.config.setting import setting
from pretrain.optim.schedules import ScheduleConfig


@dataclass
class HalfWaveConfig(ScheduleConfig):
    """The rate follows a cosine to the power of `steepness`."""

    kind: str = "half_wave"
    steepness: float = setting(1.0, "Above 1 the rate falls earlier.", bounds="(0.0, 10.0]")

    def after_warmup(self, step: int, max_steps: float) -> float:
        """Return the part of the peak rate at a step; `max_steps` is the length of the run."""
        return float((0.5 + 0.5 * math.cos(math.pi * min(1.0, step / max_steps))) ** self.steepness)


register("schedule", HalfWaveConfig)
