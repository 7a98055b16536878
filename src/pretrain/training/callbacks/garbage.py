"""Python's garbage collector, run where a run waits anyway: a full collection in a step stops it for up to a second."""

import gc

import lightning as L

from pretrain.training.callbacks import StepCallback
from pretrain.training.lightning_module import TrainingModule

EVERY_N_STEPS = 1000  # without a validation


class Garbage(StepCallback):
    """Takes over the collector after the first step: what is alive by then stays, and is looked at no more.

    From then on it runs at the start of a validation and every EVERY_N_STEPS steps. Reference counts, which free nearly
    everything, go on working.
    """

    def __init__(self) -> None:
        self._is_ours = False

    def on_step_end(self, trainer: L.Trainer, module: TrainingModule) -> None:
        """Take over the collector after the first step; collect every EVERY_N_STEPS steps."""
        if not self._is_ours and gc.isenabled():
            gc.collect()
            gc.freeze()
            gc.disable()
            self._is_ours = True
        elif self._is_ours and trainer.global_step % EVERY_N_STEPS == 0:
            gc.collect()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Collect what the steps since the last time have left."""
        if self._is_ours:
            gc.collect()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the collector back."""
        self._give_back()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give the collector back."""
        self._give_back()

    def _give_back(self) -> None:
        if self._is_ours:
            gc.unfreeze()
            gc.enable()
            self._is_ours = False
