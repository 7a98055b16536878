"""Lightning's rich progress bar, over the micro-batches of the whole run."""

import math
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar

from pretrain.training.lightning_module import TrainingModule


class RunRichProgress(RichProgressBar):
    """Shows the planned length of the run, and the newest training and validation loss."""

    @property
    def total_train_batches(self) -> int | float:
        """The micro-batches of the run, as planned at its present pace."""
        module = self.trainer.lightning_module
        assert isinstance(module, TrainingModule)
        planned = module.length.planned_steps(max(0, self.trainer.global_step - 1))
        return planned if math.isinf(planned) else round(planned) * self.trainer.accumulate_grad_batches

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Return the losses logged last."""
        names = ("train/loss", "val/loss")
        return {
            name: f"{float(trainer.callback_metrics[name]):.3f}" for name in names if name in trainer.callback_metrics
        }

    def _get_train_description(self, current_epoch: int) -> str:
        return "training"  # Lightning counts epochs, of which a run has one
