"""The processes of a run, one per device, started by torch's elastic agent."""

import json
import logging
import os
import signal
import time
import traceback
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pretrain.checkpoint.read import newest
from pretrain.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DivergenceError,
    Interrupted,
    PretrainError,
    RankLostError,
)
from pretrain.files.atomic_files import write_atomically
from pretrain.files.records import Count
from pretrain.launch.rank import log, rank
from pretrain.launch.run_folder import FAILURES, record_of, saved_step, stopped
from pretrain.launch.train_log import copied_output
from pretrain.parallel.process_group import leave_group
from pretrain.stop_signals import STOP_SIGNALS, AskedToStop, handled_signals, keep_from_children, listen

SHUTDOWN_S = 25  # time to save after a signal, before a process is killed
_BY_CODE = {kind.exit_code: kind for kind in (ConfigError, DataError, CheckpointError, DivergenceError, RankLostError)}


@dataclass(frozen=True)
class Failure:
    """Why a process of a run ended."""

    time: float  # seconds since 1970
    rank: Count
    exit_code: Count
    message: str


def spawn(record: dict[str, Any]) -> str:
    """Run the run plan in `record` in one process per device; return the report of rank 0.

    The data is prepared here, once. Raises the error of the process that failed first, RankLostError if one was killed.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from pretrain.launch.run_plan import from_record, prepare_text

    config = from_record(record).config
    prepare_text(config)
    for name in list(logging.root.manager.loggerDict):  # each logger has its own level
        if name.startswith(("torch.distributed.elastic", "torch.multiprocessing")):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    # else restarted processes find the addresses of the lost ones in the agent's store, and wait for them
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    failures = Path(record["folder"]) / FAILURES
    for path in failures.glob("rank-*.json"):
        path.unlink()
    agent = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=config.trainer.devices,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=config.trainer.max_restarts,
        monitor_interval=0.1,
        start_method="spawn",
        shutdown_timeout=SHUTDOWN_S,
        signals_to_handle=",".join(["SIGQUIT", *(number.name for number in handled_signals())]),
    )
    handlers = {number: signal.getsignal(number) for number in handled_signals()}
    keep_from_children()  # the launcher passes a signal to the process group on to the processes
    try:
        return str(elastic_launch(agent, work)(json.dumps(record))[0])
    except ChildFailedError as error:
        lost_rank, first = error.get_first_failure()
        raise first_failure(failures, config.trainer.devices, lost_rank, first.exitcode) from None
    except SignalException as error:
        raise interruption(failures, AskedToStop(error.sigval)) from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def work(text: str) -> str:
    """Train in one process of the run and return its report; write a failure into the run folder for the launcher.

    Restarted by the launcher after the loss of a process, it continues from the newest checkpoint.
    """
    record = json.loads(text)
    if int(os.environ["TORCHELASTIC_RESTART_COUNT"]):
        _resume_newest(record)
    with copied_output() as train_log:
        try:
            listen()
            train_log.open(Path(record["folder"]), rank())
            report = _train(record)
        except BaseException as raised:
            _end(raised, Path(record["folder"]))  # at once: the launcher's signal would take the place of the error
    leave_group()
    return report


def _end(raised: BaseException, folder: Path) -> NoReturn:
    """Write a failure of this process into the run folder, and end the process with its exit code."""
    error = stopped(raised, saved_step(folder)) if isinstance(raised, AskedToStop) else raised
    code = error.exit_code if isinstance(error, PretrainError) else 1
    message = str(error) if isinstance(error, PretrainError) else traceback.format_exc()
    path = folder / FAILURES / f"rank-{rank()}.json"
    path.parent.mkdir(exist_ok=True)
    failure = {"time": time.time(), "rank": rank(), "exit_code": code, "message": message}
    write_atomically(path, json.dumps(failure).encode())  # the launcher may end this process at any moment
    os._exit(code)  # without cleaning up, which could wait for other processes


def _train(record: dict[str, Any]) -> str:
    import torch

    from pretrain.launch.run_plan import from_record
    from pretrain.training.train import train

    local_ranks = int(os.environ["LOCAL_WORLD_SIZE"])
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_ranks))
    return str(train(from_record(record)))


def _resume_newest(record: dict[str, Any]) -> None:
    """Set the newest checkpoint in the record; end the process if the failure would occur again."""
    folder = Path(record["folder"])
    if (code := lasting_failure(_failures(folder / FAILURES), int(os.environ["WORLD_SIZE"]))) is not None:
        os._exit(code)
    (folder / FAILURES / f"rank-{rank()}.json").unlink(missing_ok=True)  # it has been answered
    resumed, _ = newest(folder)
    record["resumed"] = str(resumed.folder) if resumed else None
    log(f"a process was lost; all resume from {f'step {resumed.step}' if resumed else 'the start'}")


def lasting_failure(written: list[Failure], ranks: int) -> int | None:
    """Return the exit code of a failure that a restart would meet again, or of a stop; None if there is none.

    A process that wrote no failure was lost. The launcher stops the others by a signal, which is no stop of the run.
    """
    was_lost = len({failure.rank for failure in written}) < ranks
    codes = [each.exit_code for each in written if each.exit_code != 1 and not (was_lost and each.exit_code > 128)]
    return min(codes, default=None)


def interruption(failures: Path, asked: AskedToStop) -> PretrainError:
    """Return the error of processes that a signal ended; those that had not started training write no failure."""
    if any(failures.glob("rank-*.json")):
        return first_failure(failures, 0, 0, 0)
    return stopped(asked, saved_step(failures.parent))


def first_failure(failures: Path, ranks: int, failed_rank: int, exit_code: int) -> PretrainError:
    """Return the error of the process that failed first.

    A process that wrote no failure was lost, and made the others fail. `failed_rank` and its `exit_code` are the first
    failure that the launcher saw.
    """
    written = _failures(failures)
    silent = sorted(set(range(ranks)) - {failure.rank for failure in written})
    was_lost = failed_rank in silent and -exit_code not in STOP_SIGNALS  # then the launcher stopped the others
    causes = [item for item in written if item.exit_code != 1 and not (was_lost and item.exit_code > 128)]
    if not causes and silent:
        lost = failed_rank if failed_rank in silent else silent[0]
        name = f" ({signal.Signals(-exit_code).name})" if exit_code < 0 else ""
        saved = saved_step(failures.parent)
        advice = "continue from the last checkpoint with resume=auto" if saved else "nothing was saved yet"
        return RankLostError(f"rank {lost} was lost{name}; {advice}")
    first = min(causes or written, key=lambda failure: failure.time)
    code, message = first.exit_code, first.message
    if code > 128:
        return Interrupted(message, code - 128)
    return _BY_CODE.get(code, RankLostError)(message if code in _BY_CODE else f"rank {first.rank} failed:\n{message}")


def _failures(folder: Path) -> list[Failure]:
    """Return the failures that processes have written into a run's folder.

    One that its process deletes meanwhile, as it restarts, has been answered.
    """
    failures = []
    for path in sorted(folder.glob("rank-*.json")):
        try:
            failures.append(record_of(path, Failure))
        except CheckpointError:
            if os.path.lexists(path):
                raise
    return failures
