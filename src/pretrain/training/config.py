"""Settings of a training run: Lightning's Trainer, checkpoints, logs, samples, folders."""

import math
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import ClassVar

from pretrain.config.setting import Settings, setting
from pretrain.errors import ConfigError, shown
from pretrain.files.object_storage import check_address, refuse_address


class Precision(Enum):
    """Number format of the computation; weights, optimizer state and gradients stay in 32 bits."""

    auto = "auto"  # bf16 where the device has instructions for it, fp16 on a GPU that has them for it alone, else fp32
    fp32 = "32"
    bf16 = "bf16"
    fp16 = "fp16"  # with a loss scale (Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740)


class Strategy(Enum):
    """How several devices share a run."""

    single = "single"  # one device
    ddp = "ddp"  # each holds the whole model and reads other rows (Li et al. 2020, https://arxiv.org/abs/2006.15704)
    fsdp = "fsdp"  # each holds a shard of weights, gradients and optimizer (Zhao et al. 2023, arxiv.org/abs/2304.11277)


class OnSpike(Enum):
    """What happens at a step whose loss is far above those of the steps before it."""

    ignore = "ignore"  # train on it as on any other
    skip = "skip"  # leave the weights as they are, count the step, go on
    rewind = "rewind"  # go back to the last checkpoint, exclude the outlier sequences for good, go on
    stop = "stop"  # end the run with an error that names the sequences


class SavedWeights(Enum):
    """Which weights of a run a command takes."""

    trained = "trained"  # those of the last step
    ema = "ema"  # their moving average, of a run with ema.decay


ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")


@dataclass
class TrainerConfig(Settings):
    """What we pass to Lightning's Trainer, under its own names. Everything that counts, counts optimizer steps."""

    prefix: ClassVar[str] = "trainer."
    accelerator: str = setting("auto", "Kind of device: auto, cpu, gpu or mps.")
    devices: int = setting(1, "Devices on each machine; -1: all of its GPUs.", bounds="[1, 1024]", also=-1)
    num_nodes: int = setting(1, "Machines of the run.", bounds="[1, 65536]")
    timeout_s: float = setting(
        1800.0, "Longest time that a process may keep the others waiting before it counts as lost.",
        bounds="(0.0, inf)", unit="seconds",
    )  # fmt: skip
    max_restarts: int = setting(
        0, "Times that a run which lost a process restarts by itself from its last checkpoint.", bounds="[0, inf)",
        example=5,
    )  # fmt: skip
    strategy: Strategy = setting(Strategy.single, "How several devices share the run.")
    precision: Precision = setting(
        Precision.auto, "Number format of the computation; auto: bf16 or fp16 where the device has instructions for it."
    )
    half_residual_stream: bool = setting(
        False, "bf16: keep the residual stream in 16 bits too, as fsdp always does; not run on a GPU yet."
    )
    initial_loss_scale: float = setting(
        65536.0, "fp16: factor of the first step's loss, a power of two; it halves at a gradient that overflows.",
        bounds="[1.0, 16777216.0]", hint="a power of two",
    )  # fmt: skip
    loss_scale_growth_interval: int = setting(
        2000, "fp16: steps without overflow after which the loss scale doubles.", bounds="[1, inf)",
        unit="optimizer steps",
    )  # fmt: skip
    max_steps: int | None = setting(
        1000, "Length of the run, beside max_tokens, max_epochs, max_time. -1: no limit; null: by a printed rule.",
        bounds="[1, inf)", unit="optimizer steps", also=-1,
    )  # fmt: skip
    max_tokens: int | None = setting(
        None, "Tokens that the whole run reads, padding included; null: no such limit.", bounds="[1, inf)",
        unit="tokens", example=1000000,
    )  # fmt: skip
    max_epochs: float | None = setting(
        None, "Passes over the training rows, the last step of them included; null: no such limit.",
        bounds="(0.0, inf)", unit="epochs", example=1,
    )  # fmt: skip
    max_time: float | None = setting(
        None, "Time from the first step to the last; the learning rate's schedule follows the clock. null: no limit.",
        bounds="(0.0, inf)", unit="minutes", example=2,
    )  # fmt: skip
    gradient_clip_val: float = setting(
        1.0, "Largest norm of the whole gradient; 0: no clipping.", bounds="[0.0, inf)", hint="or 0 for no clipping"
    )
    val_check_interval: int = setting(
        250, "Steps between validations; there is always one at the end.", bounds="[1, inf)", unit="optimizer steps",
        example=1,
    )  # fmt: skip
    validate_first: bool = setting(False, "Validate before the first step too; the report shows what has changed.")
    log_every_n_steps: int = setting(
        10, "Steps between lines of training figures.", bounds="[1, inf)", unit="optimizer steps", example=1
    )
    enable_progress_bar: bool = setting(True, "Print a line of figures every log_every_n_steps.")
    profile_steps: int = setting(
        0, "Steps near the start to profile into <run folder>/profile, as a trace for Perfetto; 0: none.",
        bounds="[0, inf)", unit="optimizer steps", example=5,
    )  # fmt: skip
    deterministic: bool = setting(False, "Refuse operations that have no deterministic form.")

    @property
    def ranks(self) -> int:
        """Processes of the run, one for each device of each machine."""
        return max(1, self.devices) * self.num_nodes

    def __post_init__(self) -> None:
        super().__post_init__()
        others = (self.max_tokens, self.max_epochs, self.max_time)
        if self.max_steps == -1 and others == (None, None, None):
            raise ConfigError(
                "trainer.max_steps=-1 sets no limit, and there is no other: the run would not end. "
                "Try trainer.max_time=60 (minutes), trainer.max_epochs=1, or trainer.max_tokens=1000000000."
            )
        if math.frexp(self.initial_loss_scale)[0] != 0.5:
            raise ConfigError(
                f"trainer.initial_loss_scale={self.initial_loss_scale:g} is not a power of two, and only those leave "
                "the digits of gradients as they are. Try trainer.initial_loss_scale=65536."
            )
        if self.half_residual_stream and self.precision in (Precision.fp32, Precision.fp16):
            why = "fp16 has no number above 65,504, which a residual stream may pass"
            if self.precision is Precision.fp32:
                why = "auto becomes fp32 where a device has no instructions for bf16"
            raise ConfigError(
                "trainer.half_residual_stream=true keeps the residual stream in bf16, and trainer.precision is "
                f"{self.precision.name}: {why}. Try trainer.precision=bf16, or trainer.half_residual_stream=false."
            )
        if self.accelerator not in ACCELERATORS:
            raise ConfigError(
                f"trainer.accelerator={self.accelerator} is none of auto, cpu, gpu, mps. Try trainer.accelerator=auto."
            )
        if self.devices == -1 and self.strategy is Strategy.single:
            raise ConfigError(
                "trainer.devices=-1 takes all GPUs of a machine, and trainer.strategy=single one device. "
                "Try trainer.devices=1, or trainer=ddp for all GPUs."
            )
        if self.ranks > 1 and self.strategy is Strategy.single:
            raise ConfigError(
                f"trainer.devices={self.devices} x trainer.num_nodes={self.num_nodes} devices cannot share a run with "
                "trainer.strategy=single. Try trainer=ddp, or trainer=fsdp for a large model."
            )


@dataclass
class StageEnd(Settings):
    """Where a stage ends, in one of three ways; the last stage lasts until the run ends and needs none."""

    prefix: ClassVar[str] = "stages.<name>."
    until_steps: int | None = setting(
        None, "Optimizer steps of the run at the end of the stage.", bounds="[1, inf)", unit="optimizer steps",
        example=1000,
    )  # fmt: skip
    until_tokens: int | None = setting(
        None, "Tokens that the run has read at the end of the stage, padding included.", bounds="[1, inf)",
        unit="tokens", example=1000000,
    )  # fmt: skip
    until_fraction: float | None = setting(
        None, "Part of the run at the end of the stage: of trainer.max_tokens where that is set, else of max_steps.",
        bounds="(0.0, 1.0]", example=0.9,
    )  # fmt: skip

    def words(self) -> str:
        """Return the end as it was written; empty without one."""
        return next((f"{each.name}={shown(value)}" for each in fields(self) if (value := getattr(self, each.name))), "")


@dataclass
class DivergenceConfig(Settings):
    """What happens where the loss jumps. A step whose gradient is not finite is skipped in any case."""

    prefix: ClassVar[str] = "divergence."
    on_spike: OnSpike = setting(OnSpike.ignore, "What to do at a step whose loss is far above those before it.")
    deviations: float = setting(
        6.0, "Standard deviations above the mean of the last losses that make a step a spike.", bounds="(0.0, inf)"
    )
    window: int = setting(
        128, "Last losses that mean and deviation are taken of; before half of them are known, no step is a spike.",
        bounds="[4, inf)", unit="optimizer steps",
    )  # fmt: skip
    max_rewinds: int = setting(20, "Most times that one start of the run goes back.", bounds="[0, inf)")


@dataclass
class CheckpointConfig(Settings):
    """When the state of the run is saved and how much of it is kept."""

    prefix: ClassVar[str] = "checkpoint."
    every_n_steps: int = setting(
        250, "Steps between checkpoints; there is always one at the end and when the run is interrupted.",
        bounds="[1, inf)", unit="optimizer steps",
    )  # fmt: skip
    asynchronous: bool = setting(False, "Write from a copy of the state in memory while the training goes on.")
    keep: int = setting(
        2, "Newest checkpoints to keep; an older one goes once a newer one has been verified. 0: all.",
        bounds="[0, inf)", hint="or 0 for all",
    )  # fmt: skip


@dataclass
class EmaConfig(Settings):
    """An exponential moving average of the weights (Polyak and Juditsky 1992), beside those that are trained."""

    prefix: ClassVar[str] = "ema."
    decay: float = setting(
        0.0, "Part of the average that a step leaves, smaller in the first steps; 0: no average.",
        bounds="[0.0, 1.0)", example=0.999,
    )  # fmt: skip


@dataclass
class LoggingConfig(Settings):
    """What is logged beside the usual figures."""

    prefix: ClassVar[str] = "logging."
    norms: bool = setting(False, "Log the norms of gradient and weights of each block, every log_every_n_steps.")
    ledger: bool = setting(False, "Write ledger.jsonl: rows and exact loss of every step, to prove what the run read.")
    system_every_s: float = setting(
        30.0, "Time between figures of CPU, memory and GPUs (these with the package nvidia-ml-py); 0: none.",
        bounds="[0.0, inf)", unit="seconds", example=10,
    )  # fmt: skip
    report: bool = setting(True, "Write report.html into the run folder when the run ends or is interrupted.")


@dataclass
class SampleConfig(Settings):
    """What the model writes, or fills in, while it trains and at the end."""

    prefix: ClassVar[str] = "sample."
    every_n_steps: int = setting(
        500, "Steps between samples; 0: only at the end.", bounds="[0, inf)", unit="optimizer steps", example=0
    )
    prompts: list[str] = setting(
        default_factory=list,
        about=r"Texts to continue, as they stand: a \n stays two characters. []: lines of validation documents.",
    )
    max_new_tokens: int = setting(
        100, "Most tokens of a completion.", bounds=f"[0, {1 << 24}]", unit="tokens", example=200
    )
    temperature: float = setting(0.8, "Softness of the choice; 0: always the most likely token.", bounds="[0.0, inf)")
    top_k: int = setting(50, "Most likely tokens to choose among; 0: all.", bounds="[0, inf)", example=0)
    repetition_penalty: float = setting(
        1.1, "Above 1: tokens of the text so far become less likely (Keskar et al. 2019).", bounds="(0.0, inf)"
    )


@dataclass
class StorageConfig(Settings):
    """A copy of the run in an object storage, made while it trains."""

    prefix: ClassVar[str] = "storage."
    url: str | None = setting(
        None, "Where run folders are copied to, s3://bucket/logs or gs://bucket/logs, as below logs_dir; null: nowhere."
    )
    retry_s: float = setting(
        60.0, "Time for which a request that failed is tried again.", bounds="[0.0, inf)", unit="seconds"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.url is not None:
            check_address("storage.url", self.url)


@dataclass
class PathsConfig(Settings):
    """Folders, relative to the working directory."""

    prefix: ClassVar[str] = "paths."
    logs_dir: str = setting("logs", "Folder of all run folders.")
    cache_dir: str = setting(".cache", "Tokenizers and token stores, each named by the hash of what it was made from.")
    run_dir: str | None = setting(None, "The run folder; null: logs_dir/<name>/<time of the start>.")

    def __post_init__(self) -> None:
        super().__post_init__()
        copied = "Try storage.url=s3://bucket/logs, which copies each finished checkpoint there."
        for name in ("logs_dir", "run_dir"):
            refuse_address(f"paths.{name}", getattr(self, name), copied)
        refuse_address("paths.cache_dir", self.cache_dir, "Try paths.cache_dir=.cache.")
        for each in fields(self):  # a shell has done so, and YAML has not
            if (path := getattr(self, each.name)) is not None and path.startswith("~/"):
                setattr(self, each.name, str(Path(path).expanduser()))
