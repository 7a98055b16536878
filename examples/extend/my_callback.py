"""A callback of your own, any of Lightning's: it notes the lowest loss, and its state is saved with the run.

PYTHONPATH=examples/extend python src/train.py callbacks.lowest.class_path=my_callback.LowestLoss
"""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class LowestLoss(Callback):
    def __init__(self, digits: int = 4) -> None:  # callbacks.lowest.init_args.digits=2
        self.digits = digits
        self.lowest = float("inf")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.lowest = min(self.lowest, float(trainer.callback_metrics["val/loss"]))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        print(f"lowest validation loss: {self.lowest:.{self.digits}f}")

    def state_dict(self) -> dict[str, Any]:
        return {"lowest": self.lowest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.lowest = state["lowest"]
