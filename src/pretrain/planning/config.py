"""Settings of `python src/plan.py`: those of the training run to plan, and of its target machine."""

import math
from dataclasses import dataclass, fields
from enum import Enum

from pretrain.config.run import RunConfig
from pretrain.errors import ConfigError
from pretrain.objectives.config import ClassifyConfig


class Device(Enum):
    """Devices that a run can be planned for."""

    auto = "auto"  # what this machine would train on; an H100 where the run asks for GPUs and there are none
    a100 = "a100"  # SXM, 80 GB
    h100 = "h100"  # SXM, 80 GB
    h200 = "h200"
    b200 = "b200"
    rtx_4090 = "rtx_4090"
    cpu = "cpu"  # this machine's CPU, measured


@dataclass
class PlanConfig(RunConfig):
    """The settings of a training run and of the machine that it is planned for."""

    device: Device = Device.auto
    mfu: float = 0.4  # share of a GPU's peak that the model's own operations reach; a CPU's speed is measured
    memory_gib: float | None = None  # of one device (for CPUs of the machine); null: the device's own
    price_per_hour: float | None = None  # of one device, in any currency; null: no cost is printed
    hours_between_failures: float = 24.0  # of the whole run, for the interval between checkpoints
    storage_gb_per_s: float = 1.0  # at which a checkpoint is written, by all devices together
    vocab_size: int | None = None  # of the tokenizer; null: from its settings or files
    dry_run: bool = True  # count the memory of one step of the training code on fake tensors; false: estimate it
    fit: bool = False  # search settings that fit memory_gib, with the same batch_size and so the same losses
    run: str | None = None  # a run folder: print its forecast beside what it measured

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.objective, ClassifyConfig):
            raise ConfigError(
                "objective=classify fine-tunes, and plan.py counts pre-training. Plan the base with the same rows, "
                "which takes a little more: objective=masked data=text_files."
            )
        if not 0.0 < self.mfu <= 1.0:
            raise ConfigError(f"mfu={self.mfu} is not a share above 0 and up to 1. Try mfu=0.4.")
        usual = {"memory_gib": 80, "price_per_hour": 2.5, "hours_between_failures": 24, "storage_gb_per_s": 1}
        for name, value in usual.items():
            given = getattr(self, name)
            if given is not None and not 0.0 < given < math.inf:
                raise ConfigError(f"{name}={given} is not a number above 0. Try {name}={value}.")
        if self.vocab_size is not None and self.vocab_size < 1:
            raise ConfigError(f"vocab_size={self.vocab_size} is below 1. Try vocab_size=50257.")

    def run_config(self) -> RunConfig:
        """Return the settings of the run without those of the plan."""
        return RunConfig(**{f.name: getattr(self, f.name) for f in fields(RunConfig)})
