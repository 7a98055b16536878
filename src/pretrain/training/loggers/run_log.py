"""What a run logs beside figures, to any logger: its settings, its samples, its last checkpoint.

A logger that can do more than Lightning's interface says so by these methods; any other gets the settings alone.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from pretrain.checkpoint.read import newest
from pretrain.config.serialize import flat
from pretrain.errors import PretrainError, printable
from pretrain.launch.rank import log

_GUARDED = ("log_metrics", "add_text", "add_checkpoint", "save", "finalize", "close")
_FAILURES = "_failures_of_calls"


class RunLog:
    """The part of a logger that Lightning's interface does not have; every method may stay empty."""

    logs_checkpoints = False

    def add_config(self, config: dict[str, Any], text: str, step: int) -> None:
        """Log the settings of a start at `step`, as plain data and as YAML text."""

    def add_text(self, tag: str, text: str, step: int) -> None:
        """Log text verbatim."""

    def add_checkpoint(self, folder: Path, step: int) -> None:
        """Log the folder of the last checkpoint; called only with `logs_checkpoints`."""

    def close(self, failed: bool) -> None:
        """End the run at the service; the process may start another one."""


def log_config(loggers: Iterable[Logger], config: dict[str, Any], text: str, step: int) -> None:
    """Log the settings of a start to every logger."""
    for logger in loggers:
        if isinstance(logger, RunLog):
            logger.add_config(config, text, step)
        else:
            logger.log_hyperparams(config)


def log_text(loggers: Iterable[Logger], tag: str, text: str, step: int) -> None:
    """Log text to every logger that takes text."""
    for logger in loggers:
        if isinstance(logger, RunLog):
            logger.add_text(tag, text, step)


def log_checkpoint(loggers: Iterable[Logger], run_folder: Path) -> None:
    """Log the newest checkpoint of a run to every logger whose settings ask for it."""
    asking = [logger for logger in loggers if isinstance(logger, RunLog) and logger.logs_checkpoints]
    saved = newest(run_folder)[0] if asking else None  # verified, which takes a while
    if saved is not None:
        for logger in asking:
            logger.add_checkpoint(saved.folder, saved.step)


def close(loggers: Iterable[Logger], failed: bool) -> None:
    """End the run at every logger's service, and say how many of its calls failed."""
    for logger in loggers:
        if isinstance(logger, RunLog):
            logger.close(failed)
        if failures := vars(logger).get(_FAILURES, 0):  # Lightning's DummyLogger has every attribute
            log(f"warning: {failures:,} calls of the logger {type(logger).__name__} failed, and its record has gaps.")


def guard(loggers: Iterable[Logger]) -> None:
    """Let a logger that fails once the run has begun cost a warning, not the run or its exit code.

    Its settings are logged without this guard: an address that is wrong ends a run before its first step. What the run
    itself keeps, metrics.csv and TensorBoard's files, is not guarded.
    """
    for logger in loggers:
        for name in _GUARDED:
            if callable(method := getattr(logger, name, None)):
                setattr(logger, name, _guarded(logger, method))


def _guarded(logger: Logger, method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def call(*arguments: Any, **named: Any) -> Any:
        try:
            return method(*arguments, **named)
        except PretrainError:
            raise
        except Exception as error:
            failures = vars(logger).get(_FAILURES, 0) + 1
            setattr(logger, _FAILURES, failures)
            if failures == 1:
                text = printable(f"{type(error).__name__}: {error}", one_line=True)
                log(f"warning: the logger {type(logger).__name__} fails, and the run goes on without it: {text}")
            return None

    return call


def ids_of(loggers: Mapping[str, Logger]) -> dict[str, str]:
    """Return the id of the run at each logger's service, by the logger's name; a resume goes on with them."""
    versions = {name: getattr(each, "version", None) for name, each in loggers.items() if isinstance(each, RunLog)}
    return {name: str(version) for name, version in versions.items() if version}


def loggable(settings: dict[str, Any]) -> dict[str, bool | float | str]:
    """Return settings by their full names, such as model.n_layers; what is no number, flag or text as text."""
    plain = (bool, int, float, str)
    return {key: value if isinstance(value, plain) else str(value) for key, value in flat(settings)}
