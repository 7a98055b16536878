"""The kind of device that a run's processes train on."""

import torch

from pretrain.errors import ConfigError
from pretrain.training.config import Strategy, TrainerConfig


def choose_device(config: TrainerConfig) -> torch.device:
    """Return the device of this process.

    Raises ConfigError if the machine has none of the requested kind, or for a run shared by Apple GPUs (mps), between
    which torch sends nothing; with `auto`, CPUs share such a run.
    """
    shared = config.strategy is not Strategy.single
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available() and not (shared and config.accelerator == "auto"),
        "cpu": True,
    }
    kind = {"gpu": "cuda"}.get(config.accelerator, config.accelerator)
    if kind == "auto":
        kind = next(name for name, is_available in available.items() if is_available)
    if kind == "mps" and shared:
        raise ConfigError(
            f"trainer.accelerator=mps with trainer.strategy={config.strategy.name} shares a run, and torch cannot send "
            "between Apple GPUs. Try trainer.strategy=single trainer.devices=1, or trainer.accelerator=cpu."
        )
    if not available[kind]:
        instead = "mps" if kind == "cuda" and available["mps"] else "cpu"
        raise ConfigError(
            f"trainer.accelerator={config.accelerator} finds no such device here. Try trainer.accelerator={instead}."
        )
    return torch.device(kind)
