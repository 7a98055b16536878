"""Settings of `python src/doctor.py`: the settings of a training run, and the part of it to check."""

from dataclasses import dataclass, fields
from enum import Enum

from pretrain.config.run import RunConfig
from pretrain.config.setting import setting


class Part(Enum):
    """Parts that can be checked alone."""

    all = "all"
    data = "data"  # the user's prepared corpus: files, tokenizer, packing, shuffle, mixture
    machine = "machine"  # library versions, device, gradients of its kernels, disk space
    mup = "mup"  # steps of a muP model at three widths
    resume = "resume"  # a resumed run against an uninterrupted one, checkpoints
    parallel = "parallel"  # gradient accumulation and two processes against one process


@dataclass
class DoctorConfig(RunConfig):
    """Settings of a training run, checked with small runs."""

    doctor: Part = setting(Part.all, "The part to check.")

    def run_config(self) -> RunConfig:
        """Return the settings of the run without those of the doctor."""
        return RunConfig(**{f.name: getattr(self, f.name) for f in fields(RunConfig)})
