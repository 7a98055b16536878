"""The callbacks and loggers that the settings name, built, and their state in checkpoints."""

from typing import Any

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from pretrain.config.run import RunConfig
from pretrain.config.serialize import to_dict
from pretrain.errors import CheckpointError, ConfigError
from pretrain.launch.branch import begins
from pretrain.launch.rank import log
from pretrain.launch.run_plan import RunPlan
from pretrain.training.callbacks.early_stopping import RunEarlyStopping
from pretrain.training.callbacks.plain_state import from_plain, to_plain
from pretrain.training.logger_config import RunFacts


class UserCallbacks:
    """The callbacks that the settings name, by name. What they have counted is saved with the run and loaded again."""

    def __init__(self, callbacks: dict[str, Callback]) -> None:
        self.callbacks = callbacks
        self._saved: dict[str, Any] = {}
        self._left_out: set[str] = set()
        self.forgets_losses = False  # the run is where a branch begins, or a stage with other losses

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every callback that has one; what is no plain data is left out with a warning, once."""
        states = {}
        for name, callback in self.callbacks.items():
            try:
                if state := callback.state_dict():
                    states[name] = to_plain(state)
            except (TypeError, ValueError) as error:
                if name not in self._left_out:
                    log(f"warning: the state of callbacks.{name} is not saved, and a resume starts it anew: {error}")
                self._left_out.add(name)
        return {"callbacks": states} if states else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the saved states until `restore`."""
        saved = state.get("callbacks", {})
        self._saved = saved if isinstance(saved, dict) else {}

    def restore(self) -> None:
        """Load the saved states, as Lightning does after `setup`; raises CheckpointError for one that does not fit."""
        for name, state in self._saved.items():
            if name in self.callbacks:
                try:
                    self.callbacks[name].load_state_dict(from_plain(state))
                except Exception as error:  # of a class of the user's
                    raise CheckpointError(
                        f"the saved state of callbacks.{name} does not fit its class: {error!r}. Give it another name "
                        "to start it anew, or leave it out."
                    ) from error
        self._saved = {}
        for callback in self.callbacks.values():
            if self.forgets_losses and isinstance(callback, RunEarlyStopping):
                callback.forget_losses()

    def more_patience(self) -> list[str]:
        """Return the settings with which a run that early stopping has ended goes on; it would end again without."""
        return [
            f"callbacks.{name}.patience={2 * callback.patience}"
            for name, callback in self.callbacks.items()
            if isinstance(callback, RunEarlyStopping) and callback.has_stopped
        ]

    def why_stopped(self) -> str:
        """Return the reason that a callback gives for having ended the run; empty if none gives one."""
        for name, callback in self.callbacks.items():
            if reason := getattr(callback, "stopping_reason_message", None):
                return f"callbacks.{name}: {' '.join(str(reason).replace('Signaling Trainer to stop.', '').split())}"
        return ""


def run_facts(run_plan: RunPlan) -> RunFacts:
    """Return what callbacks and loggers are built from."""
    config = run_plan.config
    resumed = run_plan.resumed
    saved = resumed.progress.get("logger_ids", {}) if resumed and not begins(config, resumed) else {}
    return RunFacts(
        folder=run_plan.folder,
        name=f"{config.name or 'run'}/{run_plan.folder.name}",
        config=to_dict(config),
        start=run_plan.start,
        tags=tuple(dict.fromkeys([config.objective.kind, config.data.kind, *config.tags])),
        logger_ids={name: str(value) for name, value in saved.items()} if isinstance(saved, dict) else {},
        classes=run_plan.classes,
    )


def check_callbacks(config: RunConfig, validates: bool) -> None:
    """Raise ConfigError for a callback without a logger or, unless the run `validates`, without a loss to watch."""
    for name, each in config.callbacks.items():
        if each.needs_logger and not config.loggers:
            raise ConfigError(f"callbacks.{name} logs curves, and the run has no logger. Try logger=csv.")
        if each.monitors_validation and not validates:
            raise ConfigError(
                f"callbacks.{name} watches the validation, and the run has no validation documents. "
                f"Try data.validation_fraction=0.05, or callbacks.{name}=null."
            )


def build_user_callbacks(config: RunConfig, facts: RunFacts, validates: bool) -> UserCallbacks:
    """Return the callbacks that the settings name; `validates`: whether the run has validation data.

    Raises ConfigError for one that has nothing to watch or to log to, and for a class that cannot be used.
    """
    check_callbacks(config, validates)
    return UserCallbacks({name: each.build(name, facts) for name, each in config.callbacks.items()})


def build_loggers(config: RunConfig, facts: RunFacts) -> dict[str, Logger]:
    """Return the loggers that the settings name, by name."""
    return {name: each.build(name, facts) for name, each in config.loggers.items()}
