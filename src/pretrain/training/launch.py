"""Start a run: resolve the settings, then train in this process or in one for each device."""

import json
import os
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from threading import Timer
from typing import Any

from pretrain.config.run import RunConfig
from pretrain.config.serialize import to_dict
from pretrain.data.prepare import check_files, prepare
from pretrain.errors import ConfigError, RankLostError, printable
from pretrain.launch.rank import check_agent, check_launcher, log, rank, under_launcher
from pretrain.launch.resume import as_config
from pretrain.launch.run_lock import only_run_in
from pretrain.launch.run_plan import RunPlan, from_record, resolve_run, to_record
from pretrain.parallel.process_group import leave_group
from pretrain.training.config import Strategy, TrainerConfig
from pretrain.training.elastic import spawn

_QUIET_S = 20.0  # of waiting for other processes before it is said


_met_at: list[Any] = []  # where processes of torchrun or srun met: closed, those that are late would find nobody


def launch(config: RunConfig | None, overrides: list[str]) -> None:
    """Train as `config` says, in this process or in one for each device, and print the report.

    Under torchrun or srun the first process decides settings and folder and hands them to the others, which have no
    `config`.
    """
    check_launcher()
    if under_launcher():
        log(_run(_agreed_run_plan(config, overrides)))
        leave_group()
        return
    assert config is not None
    config = with_devices(config)
    check_files(config.data)
    run_plan = _resolve_auto_settings(resolve_run(config, overrides))
    alone = run_plan.config.trainer.ranks == 1 and not run_plan.config.trainer.max_restarts
    if alone:
        log(_run(run_plan))
        return
    with only_run_in(run_plan.folder):
        log(spawn(to_record(run_plan)))


def _run(run_plan: RunPlan) -> str:
    if rank() > 0:
        return _train(run_plan)
    with only_run_in(run_plan.folder):
        return _train(run_plan)


def _train(run_plan: RunPlan) -> str:
    from pretrain.training.train import train  # here: a wrong folder is told before Lightning is loaded

    return str(train(run_plan))


def _resolve_auto_settings(run_plan: RunPlan) -> RunPlan:
    """Return the run plan with every `auto` measured, once, as several processes could find different answers."""
    from pretrain.training.compilation import resolve_compile  # here: reading settings loads no torch
    from pretrain.training.strategy import choose_device, resolve_precision

    device = choose_device(run_plan.config.trainer)
    return replace(run_plan, config=resolve_compile(resolve_precision(run_plan.config, device), device))


def with_devices(config: RunConfig) -> RunConfig:
    """Return the settings with the number of devices that `trainer.devices=-1` means here.

    Raises ConfigError where a strategy for several devices finds no GPU and was not told to use processors.
    """
    trainer = config.trainer
    if trainer.strategy is Strategy.single:
        return config
    from torch import cuda  # here: a run on one device reads its settings without torch

    gpus = cuda.device_count() if trainer.accelerator != "cpu" else 0
    if not gpus and (trainer.accelerator != "cpu" or trainer.devices == -1):
        raise ConfigError(
            f"trainer={trainer.strategy.name} shares a run between GPUs, and this machine has none. "
            "Its processors can do it with trainer.accelerator=cpu trainer.devices=2."
        )
    if trainer.devices != -1:
        return config
    record = to_dict(config)
    record["trainer"]["devices"] = gpus
    return as_config(record)


def _agreed_run_plan(config: RunConfig | None, overrides: list[str]) -> RunPlan:
    """Return the same placement on every process: the first one places, the others receive it through the store."""
    from torch.distributed.rendezvous import rendezvous

    timeout_s = config.trainer.timeout_s if config else TrainerConfig.timeout_s
    check_agent()
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    notice = Timer(_QUIET_S, _notice_wait, (address, timeout_s))
    notice.start()
    try:
        store, number, _ = next(rendezvous("env://", timeout=timedelta(seconds=timeout_s)))
        _met_at.append(store)
    except RuntimeError as error:  # the class of all that torch says of its stores
        raise RankLostError(
            f"the processes of the run did not find each other at {address}: {str(error).splitlines()[0]} Look whether "
            f"all {os.environ['WORLD_SIZE']} of them run, and the port is free: torchrun --master-port <another>."
        ) from error
    finally:
        notice.cancel()
    if number == 0:
        assert config is not None
        record = to_dict(config)
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        record["trainer"] |= {"devices": local, "num_nodes": int(os.environ["WORLD_SIZE"]) // local}
        run_plan = _resolve_auto_settings(resolve_run(as_config(record), overrides))
        prepare(run_plan.config.data, run_plan.config.tokenizer, Path(run_plan.config.paths.cache_dir))
        store.set("pretrain/placement", json.dumps(to_record(run_plan)))
    return from_record(json.loads(store.get("pretrain/placement")))


def _notice_wait(address: str, timeout_s: float) -> None:
    """Print what a process waits for that has waited for some time."""
    others = int(os.environ["WORLD_SIZE"]) - 1
    line = (
        f"rank {rank()} waits at {address} for the other processes ({others}) that torchrun or srun starts, for up to "
        f"{timeout_s:,.0f} s (trainer.timeout_s). Where nothing has started them: unset TORCHELASTIC_RUN_ID RANK"
    )
    print(printable(line, one_line=True), file=sys.stderr, flush=True)
