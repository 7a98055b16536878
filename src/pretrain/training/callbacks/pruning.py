"""Reports the validation loss of a run to an Optuna study, and ends the run where the study prunes its trial."""

from __future__ import annotations

import math

import lightning as L
import optuna
from lightning.pytorch.callbacks import Callback

from pretrain.training.lightning_module import TrainingModule

PARTS = 20  # of a run, at which its figures are compared with those of other trials


class TrialPruning(Callback):
    """Reports a figure of each validation; all processes end together, with checkpoint and report.

    Trials of different batch sizes, or that end by the clock, differ in their steps. So a figure is reported at its
    twentieth of the run, the first of each twentieth only; a resume, which validates again, adds none. Only rank 0
    reports to the study.
    """

    def __init__(self, monitor: str, storage: str, study: str, trial: int) -> None:
        self.monitor = monitor
        self.storage = storage
        self.study = study
        self.number = trial
        self.stopping_reason_message = ""
        self._trial: optuna.trial.Trial | None = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report the figure of this step, and end the run if the study says so."""
        if trainer.sanity_checking and trainer.global_step == 0:
            return
        assert isinstance(pl_module, TrainingModule)
        value = trainer.callback_metrics.get(self.monitor)
        prune = False
        if trainer.is_global_zero and value is not None and math.isfinite(float(value)):
            trial = self._trial = self._trial or self._open()
            trial.report(float(value), int(PARTS * pl_module.length.share_done(trainer.global_step)))
            prune = trainer.state.fn == "fit" and trial.should_prune()
        if trainer.strategy.reduce_boolean_decision(prune, all=False):
            self.stopping_reason_message = (
                f"pruned: {self.monitor} was worse than that of other trials at this share of the run"
            )
            trainer.should_stop = True

    def _open(self) -> optuna.trial.Trial:
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # else a warning for each step that was reported before
        study = optuna.load_study(study_name=self.study, storage=self.storage)
        record = next(each for each in study.get_trials(deepcopy=False) if each.number == self.number)
        return optuna.trial.Trial(study, record._trial_id)
