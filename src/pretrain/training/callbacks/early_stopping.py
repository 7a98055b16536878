"""Early stopping by a figure of the validation, exact across a resume."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping

from pretrain.errors import ConfigError


class RunEarlyStopping(EarlyStopping):
    """Lightning's EarlyStopping for runs whose checkpoint of a step is written before the validation of that step.

    A resume validates that step again (`validation.validates_first`), which Lightning takes for a mere check of the
    code; here it counts, unless the state that was saved has counted it. All processes end together.
    """

    def __init__(self, monitor: str, min_delta: float, patience: int, mode: str) -> None:
        super().__init__(monitor, min_delta, patience, mode=mode, check_on_train_epoch_end=False)
        self.checked_at = -1  # the step of the last validation that counted

    def state_dict(self) -> dict[str, Any]:
        """Return what Lightning's class has counted; patience is a setting, which a resume may change."""
        state = super().state_dict()
        kept = {name: state[name] for name in ("wait_count", "best_score", "stopped_epoch")}
        return kept | {"checked_at": self.checked_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue to count from `state_dict`."""
        self.wait_count = int(state_dict["wait_count"])
        self.stopped_epoch = int(state_dict["stopped_epoch"])
        self.best_score = state_dict["best_score"]
        self.checked_at = int(state_dict["checked_at"])

    def forget_losses(self) -> None:
        """Count anew: the best so far is of other rows, of another objective, or of the run that a branch leaves."""
        self.wait_count = 0
        self.best_score = torch.tensor(torch.inf if self.mode == "min" else -torch.inf)

    @property
    def has_stopped(self) -> bool:
        """Whether it has waited for as long as its patience lasts."""
        return self.wait_count >= self.patience

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop before the first step where the run had stopped already, with as much patience or less."""
        if self.has_stopped:
            trainer.should_stop = True
            self.stopping_reason_message = (
                f"Monitored metric {self.monitor} did not improve in the last {self.wait_count} records. "
                f"Best score: {self.best_score:.3f}."
            )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count the validation of this step, once."""
        step = trainer.global_step
        again = trainer.sanity_checking and step == 0  # the one before the first step of a new run
        if trainer.state.fn == "fit" and not again and step != self.checked_at:
            self._run_early_stopping_check(trainer)
            self.checked_at = step

    def _validate_condition_metric(self, logs: dict[str, Any]) -> bool:
        if self.monitor not in logs:
            known = ", ".join(sorted(name for name in logs if name.startswith("val/"))) or "none, without validation"
            raise ConfigError(
                f"early stopping watches monitor={self.monitor}, which the run does not log. There are: {known}. "
                "Try monitor=val/loss."
            )
        return True
