"""Start a run: resolve its settings, then train in this process or in one per device."""

import json
import os
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any

from pretrain.config.preset_folders import chosen_settings
from pretrain.config.run import AUTO, RunConfig
from pretrain.config.serialize import to_dict
from pretrain.data.prepare import check_files, prepare
from pretrain.errors import ConfigError, RankLostError, printable
from pretrain.launch.rank import check_agent, check_launcher, log, rank, under_launcher
from pretrain.launch.resume import as_config
from pretrain.launch.run_folder import finished_run
from pretrain.launch.run_lock import only_run_in
from pretrain.launch.run_plan import (
    RunPlan,
    from_record,
    prepare_text,
    resolve_run,
    texts_of,
    to_record,
    unused_folder_removed,
)
from pretrain.launch.train_log import TrainLog, copied_output
from pretrain.parallel.process_group import leave_group
from pretrain.training.config import Strategy, TrainerConfig
from pretrain.training.elastic import spawn
from pretrain.training.import_class import check_importable

if TYPE_CHECKING:  # it loads torch
    import torch

_NOTICE_S = 20.0  # time to wait for other processes before a notice
_RUN_PLAN = "pretrain/run_plan"  # where rank 0 puts it in the store
_LONGEST_POLL_S = 1.0

_stores: list[Any] = []  # rendezvous stores of torchrun or srun; closing one early would shut out late processes


def launch(config: RunConfig | None, overrides: list[str]) -> float | None:
    """Train as `train_to_end` does; return the last validation loss in nats per token, None where there is none."""
    folder = train_to_end(config, overrides)
    report = finished_run(folder) if rank() == 0 else None
    return None if report is None else report.validation.get("val/loss")


def train_to_end(config: RunConfig | None, overrides: list[str]) -> Path:
    """Train with the settings `config`, in this process or in one per device, print the report, return the run folder.

    Under torchrun or srun rank 0 resolves settings and folder and sends them to the others, whose `config` is None.
    What is printed goes to the log of the run folder too.
    """
    check_launcher()
    with copied_output() as train_log:
        if under_launcher():
            run_plan = _agree_on_run_plan(config, overrides)
            log(_run(run_plan, train_log))
            leave_group()
            return run_plan.folder
        assert config is not None
        config = with_devices(config)
        for text in [config.data] if config.resume else texts_of(config):  # `resume` may bring other stages
            check_files(text)
        run_plan = resolve_run(config, overrides)
        with unused_folder_removed(run_plan):
            run_plan = _with_text(run_plan, overrides)
            if run_plan.config.trainer.ranks == 1 and not run_plan.config.trainer.max_restarts:
                log(_run(run_plan, train_log))
            else:
                with only_run_in(run_plan.folder):
                    train_log.open(run_plan.folder, rank=0)
                    log(spawn(to_record(run_plan)))
        return run_plan.folder


def _run(run_plan: RunPlan, train_log: TrainLog) -> str:
    if rank() > 0:
        train_log.open(run_plan.folder, rank())
        return _train(run_plan)
    with only_run_in(run_plan.folder):
        train_log.open(run_plan.folder, rank=0)
        return _train(run_plan)


def _train(run_plan: RunPlan) -> str:
    from pretrain.training.train import train  # here: a wrong folder is reported before Lightning is loaded

    return str(train(run_plan))


def _with_text(run_plan: RunPlan, overrides: list[str]) -> RunPlan:
    """Return the run plan with what the prepared text and the device decide; classes are imported before."""
    check_importable(run_plan.config.callbacks, run_plan.config.loggers, run_plan.classes)
    from pretrain.parallel.device import choose_device  # here: it loads torch
    from pretrain.training.memory import check_memory
    from pretrain.training.model_support import check_parameter_groups

    config = run_plan.config
    device = choose_device(config.trainer)  # a missing one is an error before the text is prepared
    if config.size is None:  # else the text decides the shape
        if config.micro_batch_size != AUTO:
            check_memory(config, device)
        check_parameter_groups(config)
    return replace(run_plan, config=_fit_to_text(config, overrides, device))


def _fit_to_text(config: RunConfig, overrides: list[str], device: "torch.device") -> RunConfig:
    """Return the settings with what the prepared text and the device decide: shape, length, rows; and log why."""
    from pretrain.training.auto_settings import depends_on_text, resolve_auto_settings

    is_known = config.size is None and config.trainer.max_steps is not None and config.micro_batch_size != AUTO
    if is_known and not depends_on_text(config, device):
        return resolve_auto_settings(config)
    from pretrain.planning.chosen_size import size_run
    from pretrain.planning.length_rule import resolve_length, tokens_of
    from pretrain.planning.micro_batch import with_chosen_micro_batch

    prepared = prepare(config.data, config.tokenizer, Path(config.paths.cache_dir), log)
    lines: list[str] = []
    if config.size is not None:
        config, lines = size_run(config, prepared, chosen_settings(overrides))
    if config.trainer.max_steps is None:
        config, line = resolve_length(config, prepared)
        lines.append(line)
    config = resolve_auto_settings(config, tokens_of(prepared))
    if config.micro_batch_size == AUTO:
        config, line = with_chosen_micro_batch(config, prepared, device)
        lines.append(line)
    if lines:
        log("\n".join(lines))
    return config


def with_devices(config: RunConfig) -> RunConfig:
    """Return the settings with the number of this machine's GPUs instead of `trainer.devices=-1`.

    Raises ConfigError if a strategy for several devices finds no GPU and the settings do not ask for CPUs.
    """
    trainer = config.trainer
    if trainer.strategy is Strategy.single:
        return config
    from torch import cuda  # here: a run on one device reads its settings without torch

    gpus = cuda.device_count() if trainer.accelerator != "cpu" else 0
    if not gpus and (trainer.accelerator != "cpu" or trainer.devices == -1):
        raise ConfigError(
            f"trainer={trainer.strategy.name} shares a run between GPUs, and this machine has none. "
            "To share it between CPU processes, try trainer.accelerator=cpu trainer.devices=2."
        )
    if trainer.devices != -1:
        return config
    return replace(config, trainer=replace(trainer, devices=gpus))


def _agree_on_run_plan(config: RunConfig | None, overrides: list[str]) -> RunPlan:
    """Return the same run plan on every process: rank 0 resolves it, the others receive it through the store."""
    from torch.distributed.rendezvous import rendezvous

    timeout_s = config.trainer.timeout_s if config else TrainerConfig.timeout_s
    check_agent()
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    notice = Timer(_NOTICE_S, _print_wait_notice, (address, timeout_s))
    notice.start()
    try:
        store, number, _ = next(rendezvous("env://", timeout=timedelta(seconds=timeout_s)))
        _stores.append(store)
    except RuntimeError as error:  # the class of all errors of torch's stores
        raise RankLostError(
            f"the processes of the run did not find each other at {address}: {str(error).splitlines()[0]} Check that "
            f"all {os.environ['WORLD_SIZE']} of them run, and that the port is free: torchrun --master-port <another>."
        ) from error
    finally:
        notice.cancel()
    if number == 0:
        assert config is not None
        record = to_dict(config)
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        record["trainer"] |= {"devices": local, "num_nodes": int(os.environ["WORLD_SIZE"]) // local}
        run_plan = _with_text(resolve_run(as_config(record), overrides), overrides)
        prepare_text(run_plan.config)
        store.set(_RUN_PLAN, json.dumps(to_record(run_plan)))
    return from_record(json.loads(_received(store)))


def _received(store: Any) -> bytes:
    """Return the run plan that rank 0 sends once it has prepared the text, which may take hours.

    Waiting ends with rank 0: the store is its own, and where it is torchrun's, that ends the others. Raises
    RankLostError then.
    """
    pause_s = 0.05
    try:
        while not store.check([_RUN_PLAN]):  # `get` gives up after the store's timeout
            time.sleep(pause_s)
            pause_s = min(_LONGEST_POLL_S, 1.5 * pause_s)
        return bytes(store.get(_RUN_PLAN))
    except RuntimeError as error:  # the class of all errors of torch's stores
        raise RankLostError(
            "rank 0 ended before it sent the settings of the run to the others. Its own message says why; then start "
            "all processes again."
        ) from error


def _print_wait_notice(address: str, timeout_s: float) -> None:
    """Print that this process waits for the others, where, and for how long at most."""
    others = int(os.environ["WORLD_SIZE"]) - 1
    line = (
        f"rank {rank()} waits at {address} for the other processes ({others}) that torchrun or srun starts, for up to "
        f"{timeout_s:,.0f} s (trainer.timeout_s). If nothing has started them: unset TORCHELASTIC_RUN_ID RANK"
    )
    print(printable(line, one_line=True), file=sys.stderr, flush=True)
