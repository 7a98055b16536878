"""Settings of a training run: Lightning's Trainer, checkpoints, logs, samples, folders."""

import math
from dataclasses import dataclass, field
from enum import Enum

from pretrain.errors import ConfigError


class Precision(Enum):
    """Number format of the computation; weights, optimizer state and gradients stay in 32 bits."""

    auto = "auto"  # bf16 where a short measurement finds the device fast at it, else 32
    fp32 = "32"
    bf16 = "bf16"


class Strategy(Enum):
    """How several devices share a run."""

    single = "single"  # one device
    ddp = "ddp"  # each holds the whole model and reads other rows (Li et al. 2020, https://arxiv.org/abs/2006.15704)
    fsdp = "fsdp"  # each holds a shard of weights, gradients and optimizer (Zhao et al. 2023, arxiv.org/abs/2304.11277)


class OnSpike(Enum):
    """What is done about a step whose loss is far above those of the steps before it."""

    ignore = "ignore"  # train on it as on any other
    skip = "skip"  # leave the weights as they are, count it, go on
    rewind = "rewind"  # go back to the last checkpoint, leave out the rows to blame for good, go on
    stop = "stop"  # end the run, naming the rows


@dataclass
class TrainerConfig:
    """What we pass to Lightning's Trainer, under its own names. Everything that counts, counts optimizer steps."""

    accelerator: str = "auto"  # auto, cpu, gpu, mps
    devices: int = 1  # on each machine; -1 takes all of its GPUs
    num_nodes: int = 1
    timeout_s: float = 1800.0  # that one process may keep the others waiting before it counts as lost
    max_restarts: int = 0  # times that a run which lost a process is brought back by itself, from its last checkpoint
    strategy: Strategy = Strategy.single
    precision: Precision = Precision.auto
    max_steps: int = 1000  # the run ends with whichever of the three comes first; -1: no such limit
    max_tokens: int | None = None  # read over the whole run, padding included
    max_time: float | None = None  # minutes from the first step to the last; the schedule ends on time
    gradient_clip_val: float = 1.0  # largest norm of the whole gradient; 0 does not clip
    val_check_interval: int = 250  # steps between validations; there is always one at the end
    validate_first: bool = False  # validate before the first step too; the report shows what has changed since
    log_every_n_steps: int = 10
    enable_progress_bar: bool = True
    profile_steps: int = 0  # steps near the start whose timing goes to <run folder>/profile, as a trace for Perfetto
    deterministic: bool = False  # refuse operations that have no deterministic form

    @property
    def ranks(self) -> int:
        """Processes of the run, one for each device of each machine."""
        return max(1, self.devices) * self.num_nodes

    def __post_init__(self) -> None:
        for name in ("val_check_interval", "log_every_n_steps", "devices", "num_nodes"):
            if getattr(self, name) < 1 and (name, self.devices) != ("devices", -1):
                raise ConfigError(f"trainer.{name}={getattr(self, name)} is below 1. Try trainer.{name}=1.")
        for name in ("profile_steps", "max_restarts"):
            if getattr(self, name) < 0:
                raise ConfigError(f"trainer.{name}={getattr(self, name)} is negative. Try trainer.{name}=5.")
        if not 0 < self.timeout_s < math.inf:
            raise ConfigError(
                f"trainer.timeout_s={self.timeout_s} is not a number of seconds above 0. Try trainer.timeout_s=1800."
            )
        self._check_limits()
        if self.accelerator not in ("auto", "cpu", "gpu", "cuda", "mps"):
            raise ConfigError(
                f"trainer.accelerator={self.accelerator} is none of auto, cpu, gpu, mps. Try trainer.accelerator=auto."
            )
        if self.ranks > 1 and self.strategy is Strategy.single:
            raise ConfigError(
                f"trainer.devices={self.devices} x trainer.num_nodes={self.num_nodes} devices cannot share a run with "
                "trainer.strategy=single. Try trainer=ddp, or trainer=fsdp for a large model."
            )
        if not 0 <= self.gradient_clip_val < math.inf:
            raise ConfigError(
                f"trainer.gradient_clip_val={self.gradient_clip_val} is not a number from 0 up. "
                "Try trainer.gradient_clip_val=1.0, or 0 for no clipping."
            )

    def _check_limits(self) -> None:
        if self.max_steps < 1 and self.max_steps != -1:
            raise ConfigError(f"trainer.max_steps={self.max_steps} is below 1. Try trainer.max_steps=1000.")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigError(f"trainer.max_tokens={self.max_tokens} is below 1. Try trainer.max_tokens=1000000.")
        if self.max_time is not None and not 0 < self.max_time < math.inf:
            raise ConfigError(
                f"trainer.max_time={self.max_time} is not a number of minutes above 0. Try trainer.max_time=2."
            )
        if self.max_steps == -1 and self.max_tokens is None and self.max_time is None:
            raise ConfigError(
                "trainer.max_steps=-1 sets no limit, and there is no other: the run would not end. "
                "Try trainer.max_time=60 (minutes), or trainer.max_tokens=1000000000."
            )


@dataclass
class DivergenceConfig:
    """What happens where the loss jumps. A step whose gradient is not finite is skipped in any case."""

    on_spike: OnSpike = OnSpike.ignore
    deviations: float = 6.0  # standard deviations above the mean of the last losses that make a step a spike
    window: int = 128  # steps whose losses are the measure; before half of them are known, none is a spike
    max_rewinds: int = 20  # within one start of the run

    def __post_init__(self) -> None:
        if self.window < 4:
            raise ConfigError(f"divergence.window={self.window} is below 4. Try divergence.window=128.")
        if not 0 < self.deviations < math.inf:
            raise ConfigError(
                f"divergence.deviations={self.deviations} is not a number above 0. Try divergence.deviations=6."
            )
        if self.max_rewinds < 0:
            raise ConfigError(f"divergence.max_rewinds={self.max_rewinds} is negative. Try divergence.max_rewinds=20.")


@dataclass
class CheckpointConfig:
    """When the state of the run is saved and how much of it is kept."""

    every_n_steps: int = 250  # there is always one at the end and when the run is interrupted
    asynchronous: bool = False  # write while the training goes on, from a copy of the state in memory
    keep: int = 2  # newest checkpoints that stay; older ones go once a newer one has been verified; 0 keeps all

    def __post_init__(self) -> None:
        if self.every_n_steps < 1:
            raise ConfigError(
                f"checkpoint.every_n_steps={self.every_n_steps} is below 1. Try checkpoint.every_n_steps=250."
            )
        if self.keep < 0:
            raise ConfigError(f"checkpoint.keep={self.keep} is negative. Try checkpoint.keep=2, or 0 for all.")


@dataclass
class LoggerConfig:
    """Where figures go while the run goes on."""

    tensorboard: bool = True
    csv: bool = True
    ledger: bool = False  # ledger.jsonl: rows and exact loss of every step, to prove what the run read
    norms: bool = False  # of gradient and weights of each block, every trainer.log_every_n_steps


@dataclass
class SampleConfig:
    """What the model is asked to write, or to fill in, while it trains and at the end."""

    every_n_steps: int = 500  # 0: only at the end
    prompts: list[str] = field(default_factory=list)  # \n is a new line; none given: a few that suit the objective
    max_new_tokens: int = 100
    temperature: float = 0.8
    top_k: int = 50
    repetition_penalty: float = 1.1

    def __post_init__(self) -> None:
        for name in ("every_n_steps", "max_new_tokens", "top_k"):
            if getattr(self, name) < 0:
                raise ConfigError(f"sample.{name}={getattr(self, name)} is negative. Try sample.{name}=0.")
        if not 0 < self.repetition_penalty < math.inf:
            raise ConfigError(
                f"sample.repetition_penalty={self.repetition_penalty} is not a number above 0. "
                "Try sample.repetition_penalty=1.1."
            )
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(
                f"sample.temperature={self.temperature} is not a number from 0 up. Try sample.temperature=0.8."
            )


@dataclass
class PathsConfig:
    """Folders, relative to where the command is typed."""

    logs_dir: str = "logs"
    cache_dir: str = ".cache"  # tokenizers and token stores, found again by the hash of what they were made from
    run_dir: str | None = None  # none given: logs_dir/<name>/<time of the start>
