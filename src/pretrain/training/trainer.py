"""The Lightning Trainer and the loggers of a run, built from its settings."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L
import torch
import yaml
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins import Precision
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment

from pretrain.config.serialize import to_dict
from pretrain.files.atomic_files import write_atomically
from pretrain.launch.rank import rank, under_launcher
from pretrain.launch.run_folder import CONFIG
from pretrain.launch.run_plan import RunPlan
from pretrain.parallel.precision import autocast, half_dtype
from pretrain.training.config import Strategy
from pretrain.training.loggers.csv_table import LongCSVLogger
from pretrain.training.loggers.run_log import guard
from pretrain.training.loggers.tensorboard import RunTensorBoard
from pretrain.training.strategy import build_strategy
from pretrain.training.user_callbacks import build_loggers, run_facts
from pretrain.training.validation import validates_first


class Autocast(Precision):
    """Forward passes in autocast, without Lightning's loss scaler: the module scales the loss of fp16 itself."""

    def __init__(self, device_type: str, half: torch.dtype) -> None:
        super().__init__()
        self._device_type = device_type
        self._half = half

    @contextmanager
    def forward_context(self) -> Iterator[None]:
        """Compute matmuls in the 16-bit dtype."""
        with autocast(self._device_type, self._half):
            yield


def build_trainer(
    run_plan: RunPlan, device: torch.device, loggers: list[Logger], max_steps: int | None, validates: bool
) -> L.Trainer:
    """Return the trainer of a run; `validates`: whether it has validation data."""
    config, folder, start = run_plan.config, run_plan.folder, run_plan.start
    accumulation = config.accumulation_steps()
    half = half_dtype(config.trainer.precision) if config.trainer.strategy is not Strategy.fsdp else None
    return L.Trainer(
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=config.trainer.devices,
        num_nodes=config.trainer.num_nodes,
        strategy=build_strategy(config, device),
        plugins=[
            TorchElasticEnvironment() if under_launcher() else LightningEnvironment(),  # never a guess
            *([] if half is None else [Autocast(device.type, half)]),  # FSDP2 casts by a policy of its own
        ],
        max_steps=max_steps or -1,
        max_epochs=-1,
        accumulate_grad_batches=accumulation,
        val_check_interval=config.trainer.val_check_interval * accumulation,
        check_val_every_n_epoch=None,
        log_every_n_steps=config.trainer.log_every_n_steps,  # of callbacks that log; ours go to the loggers directly
        deterministic=config.trainer.deterministic,
        logger=loggers,
        limit_val_batches=1.0 if validates else 0,
        num_sanity_val_steps=-1 if validates_first(config, folder, start) else 0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )


def open_loggers(run_plan: RunPlan) -> dict[str, Logger]:
    """Return the loggers of a run by name, on rank 0 after the file of its settings."""
    config, whole = run_plan.config, run_plan.of_the_run
    if rank() > 0:  # Lightning's callbacks that log want one on every process
        return {name: DummyLogger() for name in list(config.loggers)[:1]}
    write_atomically(run_plan.folder / CONFIG, yaml.safe_dump(to_dict(whole), sort_keys=False).encode())
    loggers = build_loggers(config, run_facts(run_plan))
    guard(logger for logger in loggers.values() if not isinstance(logger, LongCSVLogger | RunTensorBoard))
    return loggers


def quiet_lightning() -> None:
    """Hide Lightning's banners and advice; the run logs what matters itself."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.. is deprecated.*")
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*The `srun` command is available.*")  # a run alone is one on a cluster too
    warnings.filterwarnings("ignore", ".*is smaller than the logging interval.*")
    warnings.filterwarnings("ignore", ".*using `LearningRateMonitor` callback with models that have no learning rate.*")
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", ".*Experiment logs directory .* exists and is not empty.*")
