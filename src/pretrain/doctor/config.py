"""Settings of `python src/doctor.py`: those of the training run to be examined, and which part to examine."""

from dataclasses import dataclass, fields
from enum import Enum

from pretrain.config.run import RunConfig


class Part(Enum):
    """What is examined."""

    all = "all"
    data = "data"  # the user's prepared corpus: files, tokenizer, order, packing, mixture
    model = "model"  # who sees whom, targets, tied weights, sizes, whether it learns
    resume = "resume"  # a resumed run against an uninterrupted one, checkpoints, disk, versions
    parallel = "parallel"  # two processes and accumulated gradients against one process


@dataclass
class DoctorConfig(RunConfig):
    """The settings of a training run, whose promises are put to the test at small size."""

    doctor: Part = Part.all

    def run_config(self) -> RunConfig:
        """Return the settings of the run alone."""
        return RunConfig(**{f.name: getattr(self, f.name) for f in fields(RunConfig)})
