"""The processes of a run: one for each device, started by torch's elastic agent from one set of settings."""

import json
import logging
import os
import signal
import time
import traceback
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.checkpoint.read import newest
from pretrain.data.prepare import prepare
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
from pretrain.parallel.process_group import leave_group
from pretrain.stop_signals import STOP_SIGNALS, AskedToStop, heeded, keep_from_children, listen

SHUTDOWN_S = 25  # to save after a signal, before a process is killed


_BY_CODE = {kind.exit_code: kind for kind in (ConfigError, DataError, CheckpointError, DivergenceError, RankLostError)}


@dataclass(frozen=True)
class Failure:
    """Why a process of a run ended."""

    time: float  # seconds since 1970
    rank: Count
    exit_code: Count
    message: str


def spawn(record: dict[str, Any]) -> str:
    """Run the placement that `record` holds in one process for each device; return the report of the first.

    The data is prepared here, once. Raises what the process that failed first raised, and RankLostError where one was
    killed.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from pretrain.launch.run_plan import from_record

    config = from_record(record).config
    prepare(config.data, config.tokenizer, Path(config.paths.cache_dir))
    for name in list(logging.root.manager.loggerDict):  # each has a level of its own
        if name.startswith(("torch.distributed.elastic", "torch.multiprocessing")):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    # else processes started again find the addresses of those they replace in the agent's store, and wait for them
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
        signals_to_handle=",".join(["SIGQUIT", *(number.name for number in heeded())]),
    )
    before = {number: signal.getsignal(number) for number in heeded()}
    keep_from_children()  # the processes hear of a signal to all of the group through the launcher
    try:
        return str(elastic_launch(agent, work)(json.dumps(record))[0])
    except ChildFailedError as error:
        number, first = error.get_first_failure()
        raise _what_failed(failures, config.trainer.devices, number, first.exitcode) from None
    except SignalException as error:
        raise _how_stopped(failures, AskedToStop(error.sigval)) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def work(text: str) -> str:
    """Run one process's part; a failure is left in the run folder for the launcher to read.

    Started again by the launcher, because one was lost, it goes on from the newest checkpoint.
    """
    record = json.loads(text)
    if int(os.environ["TORCHELASTIC_RESTART_COUNT"]):
        _go_on(record)
    try:
        listen()
        report = _train(record)
    except BaseException as raised:
        error = stopped(raised, saved_step(Path(record["folder"]))) if isinstance(raised, AskedToStop) else raised
        code = error.exit_code if isinstance(error, PretrainError) else 1
        message = str(error) if isinstance(error, PretrainError) else traceback.format_exc()
        path = Path(record["folder"]) / FAILURES / f"rank-{rank()}.json"
        path.parent.mkdir(exist_ok=True)
        failure = {"time": time.time(), "rank": rank(), "exit_code": code, "message": message}
        write_atomically(path, json.dumps(failure).encode())  # the launcher may end this process any moment
        os._exit(code)  # a process that waits for others must not wait while it cleans up
    leave_group()
    return report


def _train(record: dict[str, Any]) -> str:
    import torch

    from pretrain.launch.run_plan import from_record
    from pretrain.training.train import train

    local_ranks = int(os.environ["LOCAL_WORLD_SIZE"])
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_ranks))
    return str(train(from_record(record)))


def _go_on(record: dict[str, Any]) -> None:
    """Have the record resume the newest checkpoint; what failed for a reason that stays is not tried again."""
    folder = Path(record["folder"])
    for failure in _failures(folder / FAILURES):
        if failure.exit_code != 1:
            os._exit(failure.exit_code)
    found, _ = newest(folder)
    record["resumed"] = str(found.folder) if found else None
    log(f"a process was lost; all go on from {f'step {found.step}' if found else 'the start'}")


def _how_stopped(failures: Path, asked: AskedToStop) -> PretrainError:
    """Return the error of processes that were asked to stop; those that had not begun leave no word."""
    if any(failures.glob("rank-*.json")):
        return _what_failed(failures, 0, 0, 0)
    return stopped(asked, saved_step(failures.parent))


def _what_failed(failures: Path, ranks: int, number: int, exit_code: int) -> PretrainError:
    """Return the error of what failed first; a process that left no word was lost, and the others fell with it."""
    told = _failures(failures)
    silent = sorted(set(range(ranks)) - {failure.rank for failure in told})
    lost_first = number in silent and -exit_code not in STOP_SIGNALS  # the launcher asked the others to stop for that
    own_words = [each for each in told if each.exit_code != 1 and not (lost_first and each.exit_code > 128)]
    if not own_words and silent:
        lost = number if number in silent else silent[0]
        name = f" ({signal.Signals(-exit_code).name})" if exit_code < 0 else ""
        saved = saved_step(failures.parent)
        go_on = "go on from the last checkpoint with resume=auto" if saved else "nothing was saved yet"
        return RankLostError(f"rank {lost} was lost{name}; {go_on}")
    first = min(own_words or told, key=lambda failure: failure.time)
    code, message = first.exit_code, first.message
    if code > 128:
        return Interrupted(message, code - 128)
    return _BY_CODE.get(code, RankLostError)(message if code in _BY_CODE else f"rank {first.rank} failed:\n{message}")


def _failures(folder: Path) -> list[Failure]:
    """Return what failed processes have written into a run's folder."""
    return [record_of(path, Failure) for path in sorted(folder.glob("rank-*.json"))]
