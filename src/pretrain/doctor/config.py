"""Settings of `python src/doctor.py`: those of the training run to check, and which part to check."""

from dataclasses import dataclass, fields
from enum import Enum

from pretrain.config.run import RunConfig
from pretrain.config.setting import setting


class Part(Enum):
    """Parts that can be checked alone."""

    all = "all"
    data = "data"  # the user's prepared corpus: files, tokenizer, order, packing, mixture
    machine = "machine"  # versions of the libraries, device, gradients by its kernels, disk space
    resume = "resume"  # a resumed run against an uninterrupted one, checkpoints
    parallel = "parallel"  # two processes and accumulated gradients against one process


@dataclass
class DoctorConfig(RunConfig):
    """The settings of a training run, which is checked at small size."""

    doctor: Part = setting(Part.all, "The part to check.")

    def run_config(self) -> RunConfig:
        """Return the settings of the run without those of the doctor."""
        return RunConfig(**{f.name: getattr(self, f.name) for f in fields(RunConfig)})
