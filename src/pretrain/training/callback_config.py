"""Settings of the callbacks that a user adds to a run. Lightning is imported where a callback is built."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

from pretrain.config.setting import Settings, setting
from pretrain.training.class_paths import check_no_secrets
from pretrain.training.config import SampleConfig
from pretrain.training.logger_config import ClassPathSettings, RunFacts, check_installed


class Mode(Enum):
    """Which way a monitored figure improves."""

    min = "min"
    max = "max"


@dataclass
class CallbackConfig(Settings):
    """A callback."""

    prefix: ClassVar[str] = "callbacks.<name>."
    needs_logger: ClassVar[bool] = False
    replaces_progress: ClassVar[bool] = False  # whether it shows what our own line of figures shows
    monitors_validation: ClassVar[bool] = False
    writes_samples: ClassVar[bool] = False  # after the checkpoint of its step, as samples are
    kind: str = "?"

    def build(self, name: str, run: RunFacts) -> Any:
        """Return the Lightning callback of this entry, called `name`."""
        raise NotImplementedError


@dataclass
class EarlyStoppingConfig(CallbackConfig):
    """Ends the run where a figure of the validation has stopped improving, with checkpoint and report."""

    monitors_validation: ClassVar[bool] = True
    kind: str = "early_stopping"
    monitor: str = setting("val/loss", "Figure to watch, such as val/loss or val/accuracy.")
    patience: int = setting(3, "Validations without improvement after which the run ends.", bounds="[1, inf)")
    min_delta: float = setting(0.0, "Smallest change that counts as an improvement.", bounds="[0.0, inf)")
    mode: Mode = setting(Mode.min, "Whether a lower or a higher figure is better.")

    def build(self, name: str, run: RunFacts) -> Any:
        """Return a RunEarlyStopping."""
        from pretrain.training.callbacks.early_stopping import RunEarlyStopping

        return RunEarlyStopping(self.monitor, self.min_delta, self.patience, self.mode.value)


@dataclass
class LRMonitorConfig(CallbackConfig):
    """Logs the learning rate of every parameter group (Lightning's LearningRateMonitor)."""

    needs_logger: ClassVar[bool] = True
    kind: str = "lr_monitor"
    log_momentum: bool = setting(False, "Log the momentum or the betas too.")
    log_weight_decay: bool = setting(False, "Log the weight decay too.")

    def build(self, name: str, run: RunFacts) -> Any:
        """Return a LearningRateMonitor."""
        from lightning.pytorch.callbacks import LearningRateMonitor

        return LearningRateMonitor("step", log_momentum=self.log_momentum, log_weight_decay=self.log_weight_decay)


@dataclass
class DeviceStatsConfig(CallbackConfig):
    """Logs figures of the devices: memory, temperature, load (Lightning's DeviceStatsMonitor)."""

    needs_logger: ClassVar[bool] = True
    kind: str = "device_stats"
    cpu_stats: bool | None = setting(None, "Log those of the CPU; null: only where the run is on one.")

    def build(self, name: str, run: RunFacts) -> Any:
        """Return a DeviceStatsMonitor."""
        from lightning.pytorch.callbacks import DeviceStatsMonitor

        return DeviceStatsMonitor(cpu_stats=self.cpu_stats)


@dataclass
class RichProgressConfig(CallbackConfig):
    """A bar in colors for a terminal, instead of our own (Lightning's RichProgressBar)."""

    replaces_progress: ClassVar[bool] = True
    kind: str = "rich_progress"
    refresh_rate: int = setting(
        1, "Micro-batches between two refreshes of the bar.", bounds="[1, inf)", unit="micro-batches"
    )

    def build(self, name: str, run: RunFacts) -> Any:
        """Return a RunRichProgress."""
        check_installed(f"callbacks.{name}", "rich", "progress")
        from pretrain.training.callbacks.rich_progress import RunRichProgress

        return RunRichProgress(refresh_rate=self.refresh_rate)


@dataclass
class GenerateSamplesConfig(CallbackConfig):
    """Writes what the model makes of prompts of its own, beside the samples of `sample`, into the loggers."""

    writes_samples: ClassVar[bool] = True
    kind: str = "generate_samples"
    prompts: list[str] = setting(default_factory=list, about="Texts to continue; []: lines of validation documents.")
    every_n_steps: int = setting(
        500, "Steps between samples; there are always some at the end.", bounds="[1, inf)", unit="optimizer steps"
    )
    max_new_tokens: int = setting(
        100, "Most tokens of a completion.", bounds=f"[0, {1 << 24}]", unit="tokens", example=200
    )
    temperature: float = setting(0.8, "Softness of the choice; 0: always the most likely token.", bounds="[0.0, inf)")

    def build(self, name: str, run: RunFacts) -> Any:
        """Return a callback that writes samples under the tag samples/<name>."""
        assert run.make_samples is not None
        settings = SampleConfig(
            every_n_steps=self.every_n_steps,
            prompts=self.prompts,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
        )
        return run.make_samples(settings, f"samples/{name}")


@dataclass
class OptunaPruningConfig(CallbackConfig):
    """Ends the run where an Optuna study prunes its trial; `hydra/sweeper=optuna_pruning` adds it to each job."""

    monitors_validation: ClassVar[bool] = True
    kind: str = "optuna_pruning"
    monitor: str = setting("val/loss", "Figure to report to the study.")
    storage: str = setting("???", "Address of the study's storage, such as sqlite:///study.db.")
    study: str = setting("???", "Name of the study.")
    trial: int = setting("???", "Number of this run's trial.", bounds="[0, inf)")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_no_secrets(f"{self.prefix}storage", self.storage)

    def build(self, name: str, run: RunFacts) -> Any:
        """Return a TrialPruning."""
        check_installed(f"callbacks.{name}", "optuna", "sweep")
        from pretrain.training.callbacks.pruning import TrialPruning

        return TrialPruning(self.monitor, self.storage, self.study, self.trial)


@dataclass
class ClassPathCallbackConfig(ClassPathSettings, CallbackConfig):
    """Any Lightning callback, by the path of its class."""

    kind: str = "class_path"
