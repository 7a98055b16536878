"""A schedule of your own: the rate falls with the root of the step (Vaswani et al. 2017, section 5.3).

PYTHONPATH=examples/extend python src/train.py 'plugins=[my_schedule]' schedule=inverse_root
"""

from dataclasses import dataclass

from pretrain.config.registry import register
from pretrain.optim.schedules import ScheduleConfig


@dataclass
class InverseRootConfig(ScheduleConfig):
    kind: str = "inverse_root"

    def after_warmup(self, step: int, max_steps: float) -> float:
        peak = max(1, self.warmup_steps)
        return (peak / max(peak, step + 1)) ** 0.5


register("schedule", InverseRootConfig)
