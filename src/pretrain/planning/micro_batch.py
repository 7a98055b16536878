"""micro_batch_size=auto: the most rows of one forward pass that fit the memory of the GPU."""

from dataclasses import fields, replace

import torch

from pretrain.config.run import RunConfig
from pretrain.data.prepare import Prepared
from pretrain.errors import ConfigError
from pretrain.planning.config import PlanConfig
from pretrain.planning.fit import ESTIMATE_SLACK
from pretrain.planning.forecast import PreparedData, Target, forecast
from pretrain.planning.hardware import GIB, Hardware
from pretrain.planning.units import gib

USABLE = 0.85  # of a GPU's memory: measured peaks were up to 15 % above those of a dry run


def with_chosen_micro_batch(config: RunConfig, prepared: Prepared, device: torch.device) -> tuple[RunConfig, str]:
    """Return the settings of a run with a number instead of `micro_batch_size=auto`, and a line that says why.

    A run saves the number, so that a resume on another machine has the same micro-batches. Raises ConfigError on a
    device that is no GPU, and where no number fits.
    """
    planned = PlanConfig(**{f.name: getattr(config, f.name) for f in fields(RunConfig)})
    memory = int(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else 0
    hardware = Hardware(device.type, 1.0, 1.0, memory, gpu=device.type == "cuda", reserved=GIB)
    vocab_size = prepared.tokenizer.vocab_size
    target = Target(hardware, config.trainer.precision, vocab_size, PreparedData(vocab_size, None))
    chosen, line = largest_micro_batch(planned, target)
    return replace(config, micro_batch_size=chosen.micro_batch_size), line


def largest_micro_batch(config: PlanConfig, target: Target) -> tuple[PlanConfig, str]:
    """Return the settings with the largest `micro_batch_size` whose dry run fits, and a line that says why.

    It divides the rows of a step on a device. Without dry runs the estimate decides. Raises ConfigError where none
    fits, or the run cannot be planned.
    """
    _check(config, target)
    limit = int(USABLE * target.hardware.memory) - target.hardware.reserved
    per_device = config.rows_per_micro_batch()
    for rows in (rows for rows in range(per_device, 0, -1) if per_device % rows == 0):
        try:
            sized = replace(config, micro_batch_size=rows)
        except ConfigError:  # a batch that grows is shared by fewer micro-batches
            continue
        planned = forecast(sized, target, simulate=False)
        if config.dry_run and planned.peak <= ESTIMATE_SLACK * limit:
            planned = forecast(sized, target, simulate=True)
        if planned.peak <= limit and (planned.simulated is not None or not config.dry_run):
            line = f"micro_batch_size={rows} of auto: {gib(planned.peak)} of {gib(target.hardware.memory)}"
            return sized, f"{line}, accumulation {sized.accumulation_steps()}"
    raise ConfigError(
        f"micro_batch_size=auto: not even one row of model.context_length={config.model.context_length} fits "
        f"{USABLE:.0%} of {gib(target.hardware.memory)}. Try parallel.activation_checkpointing=true or "
        f"model.context_length={max(1, config.model.context_length // 2)}."
    )


def _check(config: RunConfig, target: Target) -> None:
    """Raise ConfigError on a device that is no GPU and for stages."""
    rows = config.rows_per_micro_batch()
    if not target.hardware.gpu:
        raise ConfigError(
            f"micro_batch_size=auto is chosen by the memory of a GPU, and the device is {target.hardware.name}. "
            f"Try micro_batch_size={rows}, all rows of a step on a device, or a part of them."
        )
    if config.stages:
        raise ConfigError(
            "micro_batch_size=auto is chosen for rows of one length, and stages change it. Try "
            f"micro_batch_size={rows}, and stages.<name>.micro_batch_size for a stage of longer rows."
        )
