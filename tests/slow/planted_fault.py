"""`src/train.py` with a fault in one process, named by PLANTED_FAULT; every process imports this."""

import os

import torch

from pretrain.config.cli import main
from pretrain.config.run import RunConfig
from pretrain.training.lightning_module import TrainingModule

FAULT = os.environ["PLANTED_FAULT"]
_step = TrainingModule.training_step


def not_finite(self: TrainingModule, batch, batch_index: int) -> torch.Tensor:
    """Rank 1 alone has losses that are no numbers, at step 4 or from there on."""
    loss = _step(self, batch, batch_index)
    there = self.global_step == 3 if FAULT == "one" else self.global_step >= 3
    return loss * float("nan") if os.environ["RANK"] == "1" and there else loss


TrainingModule.training_step = not_finite  # type: ignore[method-assign]


def train(config: RunConfig | None, overrides: list[str]) -> None:
    from pretrain.training.launch import launch

    launch(config, overrides)


if __name__ == "__main__":
    main("train", RunConfig, train)
