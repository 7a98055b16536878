"""On what a run computes, and in which number format."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

from pretrain.config.run import RunConfig
from pretrain.errors import ConfigError
from pretrain.kernels.device import bf16_is_fast
from pretrain.optim.config import MatrixPrecision, MuonConfig
from pretrain.training.config import Precision, TrainerConfig
from pretrain.training.config import Strategy as Sharing

if TYPE_CHECKING:
    from lightning.pytorch.strategies import Strategy


def choose_device(config: TrainerConfig) -> torch.device:
    """Return the device of this process; raises ConfigError where the machine has none of the kind asked for."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    wanted = {"gpu": "cuda"}.get(config.accelerator, config.accelerator)
    if wanted == "auto":
        wanted = next(kind for kind, available in available.items() if available)
    if not available[wanted]:
        raise ConfigError(
            f"trainer.accelerator={config.accelerator} finds no such device here. Try trainer.accelerator=cpu."
        )
    return torch.device(wanted)


def resolve_precision(config: RunConfig, device: torch.device) -> RunConfig:
    """Return the settings with fp32 or bf16 wherever a precision is auto.

    The resolved precision is saved with the run, so a resume does not measure again.
    """
    precision, optimizer = config.trainer.precision, config.optimizer
    if precision is Precision.auto:
        precision = Precision.bf16 if bf16_is_fast(device) else Precision.fp32
    if isinstance(optimizer, MuonConfig) and optimizer.newton_schulz_precision is MatrixPrecision.auto:
        optimizer = replace(optimizer, newton_schulz_precision=MatrixPrecision[precision.name])
    return replace(config, trainer=replace(config.trainer, precision=precision), optimizer=optimizer)


def build_strategy(config: RunConfig, device: torch.device) -> Strategy | str:
    """Return Lightning's strategy object for the run."""
    from pretrain.training.lightning_strategies import (  # here: the launcher needs none
        MeshDDPStrategy,
        MeshFSDP2Strategy,
    )

    timeout = timedelta(seconds=config.trainer.timeout_s)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if config.trainer.strategy is Sharing.ddp:
        return MeshDDPStrategy(process_group_backend=backend, timeout=timeout)
    if config.trainer.strategy is Sharing.fsdp:
        if config.parallel.cpu_offload and device.type == "cpu":
            raise ConfigError(
                "parallel.cpu_offload=true keeps what a GPU would hold in the processor's memory, and this run has no "
                "GPU. Try parallel.cpu_offload=false."
            )
        if config.parallel.cpu_offload:
            backend = "cpu:gloo,cuda:nccl"  # gradients, and so their norms, are on the processors
        return MeshFSDP2Strategy(config.parallel_dims(), config.parallel, backend, timeout)
    return "auto"
