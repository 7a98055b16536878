"""A micro-batch that no memory can hold is refused before the text is prepared, not by the first step."""

import psutil
import torch

from pretrain.config.run import RunConfig
from pretrain.errors import ConfigError
from pretrain.models.config import TransformerConfig
from pretrain.training.config import Precision, Strategy

_USUAL = 32  # times the inputs of the blocks: what blocks without checkpointing keep, and the loss


def check_memory(config: RunConfig, device: torch.device) -> None:
    """Raise ConfigError where the inputs of the blocks alone, which every step keeps, need more than the device has.

    That is a small part of what a step takes: what passes may still be too much, and `plan` counts it.
    """
    shape = config.model.transformer
    if shape is None:
        return
    rows, memory = config.rows_per_micro_batch(), memory_of(device)
    of_a_row = _bytes_of_a_row(config, shape)
    if rows * of_a_row <= memory:
        return
    fitting = max(1, memory // (_USUAL * of_a_row))
    tried = max(n for n in range(1, min(rows, fitting) + 1) if rows % n == 0)
    name = "micro_batch_size" if config.micro_batch_size else "batch_size"
    raise ConfigError(
        f"{name}={getattr(config, name)} puts {rows:,} rows of {shape.context_length:,} tokens into a micro-batch, "
        f"which takes more than {rows * of_a_row / 2**30:,.0f} GiB, and the device has {memory / 2**30:,.0f}. "
        f"Try micro_batch_size={tried}, or a smaller batch_size."
    )


def _bytes_of_a_row(config: RunConfig, shape: TransformerConfig) -> int:
    """Return the bytes of the inputs of all blocks, of the part of a row that one device has."""
    trainer, parallel = config.trainer, config.parallel
    devices = parallel.context_parallel * (parallel.tensor_parallel if parallel.sequence_parallel else 1)
    casts = trainer.strategy is Strategy.fsdp and trainer.precision is not Precision.fp32  # FSDP2, to 16 bits
    size = 2 if casts or trainer.half_residual_stream else 4
    return size * shape.context_length * shape.d_model * shape.n_layers // devices


def memory_of(device: torch.device) -> int:
    """Return the bytes of memory of a device; of a CPU or an Apple GPU those of the machine, swap space included."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total + psutil.swap_memory().total)
