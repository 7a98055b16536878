"""Callbacks of a run. Their unit is the optimizer step, not the micro-batch."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from pretrain.training.lightning_module import TrainingModule


class StepCallback(Callback):
    """A Lightning callback with a hook at the end of each optimizer step, skipped steps included."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Call `on_step_end` after the last micro-batch of a step."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            assert isinstance(pl_module, TrainingModule)
            self.on_step_end(trainer, pl_module)

    def on_step_end(self, trainer: L.Trainer, module: TrainingModule) -> None:
        """Act at the end of a step; `trainer.global_step` counts it already."""
