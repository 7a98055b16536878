"""Settings of where the tasks of a curation run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from pretrain.config.setting import Settings, setting
from pretrain.errors import ConfigError

_OWN = ("--array", "--output", "--error", "--job-name", "--parsable", "--wait", "-a", "-o", "-e", "-J", "-W")


class EngineKind(Enum):
    """What runs the tasks."""

    local = "local"
    slurm = "slurm"
    ray = "ray"


@dataclass
class EngineConfig(Settings):
    """Where the tasks run; the corpus does not depend on it, to the byte."""

    prefix: ClassVar[str] = "engine."
    kind: EngineKind = setting(EngineKind.local, "Processes of this machine, Slurm array jobs, or tasks of Ray.")
    tasks: int = setting(
        100, "kind=slurm: array tasks of a stage, at most, each on one core; below the cluster's MaxArraySize.",
        bounds="[1, 1000000]",
    )  # fmt: skip
    options: list[str] = setting(
        default_factory=list, about="kind=slurm: further options of sbatch, such as [--partition=cpu,--time=04:00:00]."
    )
    address: str | None = setting(
        None, "kind=ray: a running cluster, such as auto; null: start one on this machine with `workers` cores."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in self.options:
            if not option.startswith("-") or option.partition("=")[0] in _OWN:
                raise ConfigError(
                    f"engine.options=[{option}] is no option of sbatch, or one that each stage sets itself. "
                    "Try engine.options=[--partition=cpu,--mem=4G]."
                )
