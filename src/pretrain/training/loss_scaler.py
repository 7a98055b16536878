"""The loss scale of training in fp16, whose smallest numbers would lose small gradients."""

from typing import Any

from pretrain.training.config import Precision, TrainerConfig

LOWEST = 1.0  # gradients that overflow without a scale are the run's own
HIGHEST = 2.0**24  # gradients that stay zero would double the scale for ever


class LossScaler:
    """A power of two by which losses are multiplied before the backward pass, and gradients divided after it.

    It halves at a step whose gradient overflows, and doubles after `growth_interval` steps without one (Micikevicius et
    al. 2018, https://arxiv.org/abs/1710.03740, section 3.2). As a power of two it changes no digit of a float32 number.
    The scale is a Python number: the step has waited for the norm of its gradient, which is equal on every process, so
    every process decides alike without communication.
    """

    def __init__(self, initial: float, growth_interval: int) -> None:
        self.scale = initial
        self.growth_interval = growth_interval
        self.steps_since_change = 0  # that changed the weights

    def state_dict(self) -> dict[str, Any]:
        """Return scale and growth counter."""
        return {"loss_scale": {"scale": self.scale, "steps_since_change": self.steps_since_change}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load scale and growth counter; a checkpoint of a run in another precision changes nothing."""
        saved = state.get("loss_scale", {})
        self.scale = float(saved.get("scale", self.scale))
        self.steps_since_change = int(saved.get("steps_since_change", 0))

    def count_step(self) -> None:
        """Count a step without overflow; double the scale after `growth_interval` of them."""
        self.steps_since_change += 1
        if self.steps_since_change >= self.growth_interval:
            self.scale = min(2.0 * self.scale, HIGHEST)
            self.steps_since_change = 0

    def lower(self) -> bool:
        """Halve the scale after an overflow; return False, and change nothing, if it is at its lowest."""
        if self.scale <= LOWEST:
            return False
        self.scale /= 2.0
        self.steps_since_change = 0
        return True


def build_loss_scaler(config: TrainerConfig) -> LossScaler | None:
    """Return the loss scaler of a run in fp16; None in other precisions, which need none."""
    if config.precision is not Precision.fp16:
        return None
    return LossScaler(config.initial_loss_scale, config.loss_scale_growth_interval)
