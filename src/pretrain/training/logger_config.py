"""Settings of the loggers: where the figures of a run go. The libraries are imported where a logger is built."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

from pretrain.config.setting import Settings, setting
from pretrain.errors import ConfigError
from pretrain.training.class_paths import check_class_path, check_no_secrets


@dataclass(frozen=True)
class RunFacts:
    """What the callbacks and loggers of a run are built from."""

    folder: Path
    name: str
    config: dict[str, Any]  # the settings as plain data
    start: int = 0  # the step that the run starts or goes on from
    tags: tuple[str, ...] = ()
    logger_ids: dict[str, str] = field(default_factory=dict)  # of a resumed run's loggers at their services, by name
    classes: frozenset[str] = frozenset()  # <entry>=<class path>, as the user's own settings name them


class WandbMode(Enum):
    """Where Weights & Biases keeps a run."""

    online = "online"
    offline = "offline"  # in the run folder, for `wandb sync`
    disabled = "disabled"


@dataclass
class LoggerConfig(Settings):
    """A logger."""

    prefix: ClassVar[str] = "loggers.<name>."
    keeps_table: ClassVar[bool] = False  # whether it writes the run folder's metrics.csv
    one_per_run: ClassVar[bool] = False  # whether two of the kind would write the same files
    kind: str = "?"

    def build(self, name: str, run: RunFacts) -> Any:
        """Return the Lightning logger of this entry, called `name`; on rank 0 only."""
        raise NotImplementedError


@dataclass
class TensorBoardConfig(LoggerConfig):
    """TensorBoard event files in the run folder: curves, samples, and the page that compares the jobs of a sweep."""

    one_per_run: ClassVar[bool] = True
    kind: str = "tensorboard"

    def build(self, name: str, run: RunFacts) -> Any:
        """Return a RunTensorBoard."""
        from pretrain.training.loggers.tensorboard import RunTensorBoard

        return RunTensorBoard(run.folder, resumed_at=run.start)


@dataclass
class CSVConfig(LoggerConfig):
    """The table metrics.csv in the run folder: a row of step, name and value per figure."""

    keeps_table: ClassVar[bool] = True
    one_per_run: ClassVar[bool] = True
    kind: str = "csv"

    def build(self, name: str, run: RunFacts) -> Any:
        """Return a LongCSVLogger."""
        from pretrain.training.loggers.csv_table import open_table

        return open_table(run.folder, run.start)


@dataclass
class ClassPathLoggerConfig(LoggerConfig):
    """Any Lightning logger, by the path of its class."""

    kind: str = "class_path"
    class_path: str = setting("???", "The class, as my_package.MyLogger; it must be one of Lightning's loggers.")
    init_args: dict[str, Any] = setting(default_factory=dict, about="What the class is called with, by name.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_class_path(f"{self.prefix}class_path", self.class_path)
        check_no_secrets(f"{self.prefix}init_args", self.init_args)

    def build(self, name: str, run: RunFacts) -> Any:
        """Return an object of the class."""
        from pretrain.training.import_class import instance_of_class

        return instance_of_class(f"loggers.{name}", self, run.classes, "Logger")


def check_one_per_run(loggers: dict[str, Any]) -> None:
    """Raise ConfigError for two loggers of a kind that writes files of one name."""
    seen: dict[str, str] = {}
    for name, logger in loggers.items():
        if logger.one_per_run and logger.kind in seen:
            raise ConfigError(
                f"loggers.{name}.kind={logger.kind} would write the files of loggers.{seen[logger.kind]}. "
                f"Leave one of them out: loggers.{name}=null."
            )
        seen[logger.kind] = name
