"""A logger that fails once the run has begun costs a warning and no more; what must stop a run still does."""

from typing import Any

import pytest
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger

from pretrain.errors import CheckpointError
from pretrain.stop_signals import AskedToStop
from pretrain.training.loggers.run_log import RunLog, close, guard


class Unreachable(Logger, RunLog):
    """A service that is gone."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    name = version = "unreachable"

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        raise self.error

    def log_hyperparams(self, *arguments: Any, **named: Any) -> None:
        raise self.error

    def finalize(self, status: str) -> None:
        raise self.error

    def close(self, failed: bool) -> None:
        raise self.error


def test_the_logger_of_another_process_has_no_failures(capsys: pytest.CaptureFixture[str]) -> None:
    close([DummyLogger()], failed=False)
    assert capsys.readouterr().out == ""


def test_a_service_that_fails_is_told_once_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    logger = Unreachable(ConnectionError("connection\nrefused"))
    guard([logger])
    logger.log_metrics({"train/loss": 1.0}, 1)
    logger.log_metrics({"train/loss": 1.0}, 2)
    logger.finalize("failed")
    told = capsys.readouterr().out.splitlines()
    assert told == [
        r"warning: the logger Unreachable fails, and the run goes on without it: ConnectionError: connection\nrefused"
    ]
    close([logger], failed=False)
    assert "warning: 4 calls of the logger Unreachable failed, and its record has gaps." in capsys.readouterr().out
    with pytest.raises(ConnectionError):
        logger.log_hyperparams({})  # before the first step: the address is wrong


@pytest.mark.parametrize("error", [AskedToStop(15), CheckpointError("full")], ids=["a signal", "an error of ours"])
def test_what_must_end_a_run_passes(error: BaseException) -> None:
    logger = Unreachable(error)
    guard([logger])
    with pytest.raises(type(error)):
        logger.log_metrics({}, 1)
