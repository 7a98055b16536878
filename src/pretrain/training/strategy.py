"""On what a run computes, and in which number format."""

from __future__ import annotations

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


def resolve_precision(config: RunConfig, device: torch.device) -> Precision:
    """Return fp32 or bf16 and write it into `config` wherever that says auto.

    What auto meant is part of the run: it is saved with it, and a resume does not measure anew.
    """
    fast = Precision.bf16 if Precision.auto is config.trainer.precision and bf16_is_fast(device) else Precision.fp32
    if config.trainer.precision is Precision.auto:
        config.trainer.precision = fast
    if isinstance(config.optimizer, MuonConfig) and config.optimizer.newton_schulz_precision is MatrixPrecision.auto:
        config.optimizer.newton_schulz_precision = MatrixPrecision[config.trainer.precision.name]
    return config.trainer.precision


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
