"""On what a run computes, and in which number format."""

import torch

from pretrain.errors import ConfigError
from pretrain.planning.device import bf16_is_fast
from pretrain.training.config import Precision, TrainerConfig


def choose_device(config: TrainerConfig) -> torch.device:
    """Return the device of this process; raises ConfigError where the machine has none of the kind asked for."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    wanted = {"gpu": "cuda"}.get(config.accelerator, config.accelerator)
    if wanted == "auto":
        wanted = next(kind for kind, there in available.items() if there)
    if not available[wanted]:
        raise ConfigError(
            f"trainer.accelerator={config.accelerator} finds no such device here. Try trainer.accelerator=cpu."
        )
    return torch.device(wanted)


def choose_precision(config: TrainerConfig, device: torch.device) -> Precision:
    """Return fp32 or bf16: what was asked for, or for auto what this device is fast at."""
    if config.precision is Precision.auto:
        return Precision.bf16 if device.type != "cpu" and bf16_is_fast(device) else Precision.fp32
    return config.precision
