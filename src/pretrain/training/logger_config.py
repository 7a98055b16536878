"""Settings of the loggers: where the figures of a run go. The libraries are imported where a logger is built."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

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
    make_samples: Callable[[Any, str], Any] | None = None  # the callback that writes samples, of settings and a tag
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
    """The table metrics.csv in the run folder: a row of step, name and value per figure; samples.jsonl beside it."""

    keeps_table: ClassVar[bool] = True
    one_per_run: ClassVar[bool] = True
    kind: str = "csv"

    def build(self, name: str, run: RunFacts) -> Any:
        """Return a LongCSVLogger."""
        from pretrain.training.loggers.csv_table import open_table

        return open_table(run.folder, run.start)


@dataclass
class WandbConfig(LoggerConfig):
    """Weights & Biases, which reads WANDB_API_KEY: curves, samples and settings at wandb.ai or on this machine."""

    one_per_run: ClassVar[bool] = True  # a process has one run there
    kind: str = "wandb"
    project: str = setting("pretrain", "Project of the run.")
    entity: str | None = setting(None, "User or team; null: the default one of the key.")
    group: str | None = setting(None, "Group of runs, such as the name of a sweep.")
    mode: WandbMode = setting(WandbMode.online, "Where the run is kept; offline: in the run folder, for `wandb sync`.")
    log_checkpoints: bool = setting(False, "Log the last checkpoint's folder as an artifact.")

    def build(self, name: str, run: RunFacts) -> Any:
        """Return a RunWandb."""
        check_installed(f"loggers.{name}", "wandb", "wandb")
        from pretrain.training.loggers.services import RunWandb

        return RunWandb(self, run, name)


@dataclass
class MLflowConfig(LoggerConfig):
    """MLflow: curves, samples and settings in its store, at an address or in a local SQLite file."""

    kind: str = "mlflow"
    experiment: str = setting("pretrain", "Experiment of the run.")
    tracking_uri: str | None = setting(
        None, "Address of the store; null: that of MLFLOW_TRACKING_URI, else the file mlflow.db in paths.logs_dir."
    )
    log_checkpoints: bool = setting(False, "Log the last checkpoint's folder as an artifact.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_no_secrets(f"{self.prefix}tracking_uri", self.tracking_uri)

    def address(self, logs_dir: str) -> str:
        """Return the address of the store."""
        given = self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        return given or f"sqlite:///{(Path(logs_dir) / 'mlflow.db').absolute()}"

    def artifacts(self, address: str) -> str | None:
        """Return where a local store keeps files, beside its database; None: where the server does."""
        path = Path(address.removeprefix("sqlite:///"))
        return (path.parent / "mlflow_artifacts").absolute().as_uri() if address.startswith("sqlite:///") else None

    def build(self, name: str, run: RunFacts) -> Any:
        """Return a RunMLflow."""
        check_installed(f"loggers.{name}", "mlflow", "mlflow")
        check_server(f"loggers.{name}.tracking_uri", self.address(run.config["paths"]["logs_dir"]))
        from pretrain.training.loggers.services import RunMLflow

        return RunMLflow(self, run, name)


@dataclass
class CometConfig(LoggerConfig):
    """Comet, which reads COMET_API_KEY: curves, samples and settings at comet.com or on this machine."""

    one_per_run: ClassVar[bool] = True
    kind: str = "comet"
    project: str = setting("pretrain", "Project of the run.")
    workspace: str | None = setting(None, "Workspace; null: the default one of the key.")
    online: bool = setting(True, "Log to comet.com; false: an archive in the run folder, for `comet upload`.")
    log_checkpoints: bool = setting(False, "Log the last checkpoint's folder as assets.")

    def build(self, name: str, run: RunFacts) -> Any:
        """Return a RunComet."""
        check_installed(f"loggers.{name}", "comet_ml", "comet")
        from pretrain.training.loggers.services import RunComet

        return RunComet(self, run, name)


@dataclass
class ClassPathSettings(Settings):
    """An entry whose class the user names; the section is the first word of its `prefix`."""

    class_path: str = setting("???", "The class, as my_package.MyClass; one of Lightning's, or derived from it.")
    init_args: dict[str, Any] = setting(default_factory=dict, about="What the class is called with, by name.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_class_path(f"{self.prefix}class_path", self.class_path)
        check_no_secrets(f"{self.prefix}init_args", self.init_args)

    def build(self, name: str, run: RunFacts) -> Any:
        """Return an object of the class. Raises ConfigError for a class that cannot be used."""
        from pretrain.training.import_class import instance_of_class

        return instance_of_class(f"{self.prefix.partition('.')[0]}.{name}", self, run.classes)


@dataclass
class ClassPathLoggerConfig(ClassPathSettings, LoggerConfig):
    """Any Lightning logger, by the path of its class."""

    kind: str = "class_path"


def check_installed(key: str, package: str, extra: str) -> None:
    """Raise ConfigError where the package that the entry `key` needs is not installed."""
    if find_spec(package) is None:
        raise ConfigError(
            f"{key} needs the package {package}, which is not installed. Install it: pip install -e '.[{extra}]', "
            f"or leave the entry out: {key}=null."
        )


def check_server(key: str, address: str) -> None:
    """Raise ConfigError where no server accepts connections at a web address; MLflow would try for many minutes."""
    url = urlsplit(address)
    if url.scheme not in ("http", "https") or url.hostname is None:
        return
    try:
        socket.create_connection((url.hostname, url.port or (443 if url.scheme == "https" else 80)), timeout=10).close()
    except OSError as error:
        raise ConfigError(
            f"{key}={address}: no server answers there ({error.strerror or error}). Start it, correct the address, or "
            f"log to a file: {key}=sqlite:///mlflow.db."
        ) from error


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
