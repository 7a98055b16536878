"""Settings of `python src/plan.py`: those of the training run to plan, and of its target machine."""

import math
import re
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import ClassVar

from pretrain.config.run import RunConfig
from pretrain.config.setting import Settings, setting
from pretrain.errors import ConfigError
from pretrain.files.object_storage import refuse_address
from pretrain.program import command


class Device(Enum):
    """Devices that a run can be planned for."""

    auto = "auto"  # what this machine would train on; an H100 where the run asks for GPUs and there are none
    a100 = "a100"  # SXM, 80 GB
    h100 = "h100"  # SXM, 80 GB
    h200 = "h200"
    b200 = "b200"
    v100 = "v100"  # SXM, 16 GB
    t4 = "t4"
    l4 = "l4"
    a10g = "a10g"
    rtx_3090 = "rtx_3090"
    rtx_4090 = "rtx_4090"
    rtx_5090 = "rtx_5090"
    m1 = "m1"
    m2 = "m2"  # with 10 GPU cores
    m3 = "m3"
    m3_max = "m3_max"
    m4 = "m4"
    m4_max = "m4_max"
    other = "other"  # a GPU by peak_tflops and memory_gib
    cpu = "cpu"  # this machine's CPU, measured


@dataclass
class PlanConfig(RunConfig):
    """Settings of a training run and of the machine to plan it for."""

    device: Device = setting(
        Device.auto, "Device to plan for; auto: this machine's, an H100 where the run asks for GPUs and there are none."
    )
    peak_tflops: float | None = setting(
        None, "Dense peak of one GPU in the run's precision; null: that of its data sheet.", bounds="(0.0, inf)",
        unit="TFLOP/s", example=65,
    )  # fmt: skip
    mfu: float = setting(
        0.4, "Share of a GPU's peak FLOP/s that the model reaches; a CPU's speed is measured.", bounds="(0.0, 1.0]"
    )
    memory_gib: float | None = setting(
        None, "Memory of one device, for CPUs of the machine; null: the device's own.", bounds="(0.0, inf)", unit="GiB",
        example=80,
    )  # fmt: skip
    price_per_hour: float | None = setting(
        None,
        "Price of one device per hour, in any currency; null: no cost is printed.",
        bounds="(0.0, inf)",
        example=2.5,
    )
    hours_between_failures: float = setting(
        24.0, "Mean time between failures of the whole run, for the interval between checkpoints.", bounds="(0.0, inf)",
        unit="hours",
    )  # fmt: skip
    storage_gb_per_s: float = setting(
        1.0, "Speed at which all devices together write a checkpoint.", bounds="(0.0, inf)", unit="GB/s"
    )
    vocab_size: int | None = setting(
        None, "Size of the tokenizer's vocabulary; null: from its settings or files.", bounds="[1, inf)", unit="tokens",
        example=50257,
    )  # fmt: skip
    dry_run: bool = setting(
        True, "Measure the memory of one step of the training code on fake tensors; false: estimate it."
    )
    fit: bool = setting(False, "Search settings that fit memory_gib, with the same batch_size and so the same losses.")
    run: str | None = setting(None, "A run folder: print its forecast beside what it measured.")
    report: str | None = setting(None, "An HTML file to write the plan to as well.", example="plan.html")

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_address("run", self.run)
        if self.report is not None and self.run is not None:
            raise ConfigError(
                f"report={self.report} writes a plan, and run={self.run} compares a finished run. Leave one of them "
                f"out; the report of a run is written by {command('report')} path={self.run}."
            )
        if self.objective.n_labels is not None or self.objective.embedding_pooling is not None:
            raise ConfigError(
                f"objective={self.objective.kind} fine-tunes, and plan counts pre-training. Plan the base with the "
                "same rows, which takes a little more: objective=masked data=text_files."
            )

    def run_config(self) -> RunConfig:
        """Return the settings of the run without those of the plan."""
        return RunConfig(**{f.name: getattr(self, f.name) for f in fields(RunConfig)})


@dataclass(frozen=True)
class LadderSize:
    """A size of a ladder: layers x width, such as 4x128."""

    n_layers: int
    d_model: int

    def __str__(self) -> str:
        return f"{self.n_layers}x{self.d_model}"

    @classmethod
    def read(cls, text: str, key: str = "ladder.sizes") -> "LadderSize":
        """Return the size that a text such as 4x128 is. Raises ConfigError for another text."""
        match = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,5})", text)
        if match is None:
            raise ConfigError(f"{key}={text} is no size, which is layers x width. Try {key}=4x128.")
        return cls(int(match[1]), int(match[2]))


@dataclass
class LadderConfig(Settings):
    """Which runs a scaling law is fitted to, and what it is asked."""

    prefix: ClassVar[str] = "ladder."
    sizes: list[str] = setting(
        default_factory=lambda: ["2x64", "3x96", "4x128"], about="Sizes of the model as layers x width, smallest first."
    )
    tokens: list[int] = setting(
        default_factory=lambda: [500_000, 1_000_000, 2_000_000],
        about="Lengths of the runs of every size, each with a schedule of its own that ends with it, in tokens.",
    )
    tokens_per_parameter: list[float] = setting(
        default_factory=list,
        about="Lengths as tokens for each parameter of a size, instead of ladder.tokens, such as [1, 2, 4]; []: those.",
    )
    held_out: str | None = setting(
        None, "A larger size, whose loss is predicted in a file before it is trained; null: none.", example="6x192"
    )
    held_out_tokens: int | None = setting(
        None, "Length of that run; null: twice that of the ladder's longest run.", bounds="[1, inf)", unit="tokens",
        example=4_000_000,
    )  # fmt: skip
    budget: float | None = setting(
        None, "Training operations to recommend a run for, as 6 N D; null: ten times the largest run of the ladder.",
        bounds="(0.0, inf)", unit="FLOPs", example=1e15,
    )  # fmt: skip
    rate_exponent: float = setting(
        1.0,
        "The learning rate is the preset's times (its width / width) to this power, unless one is typed or muP is on.",
        bounds="[0.0, 2.0]",
    )
    warmup_fraction: float = setting(0.1, "Share of each run that warms up.", bounds="[0.0, 1.0)")
    samples: int = setting(500, "Bootstrap samples of the fit.", bounds="[10, inf)")
    confidence: float = setting(0.9, "Of the intervals.", bounds="(0.0, 1.0)")
    output: str | None = setting(None, "Folder of the ladder; null: scale/<name> in paths.logs_dir.")

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_address("ladder.output", self.output, "Try ladder.output=logs/scale/mine.")
        for size in self.sizes:
            LadderSize.read(size)
        if self.held_out is not None:
            LadderSize.read(self.held_out, "ladder.held_out")
        if any(tokens < 1 for tokens in self.tokens):
            raise ConfigError(f"ladder.tokens={min(self.tokens)} is below 1. Try ladder.tokens=[500000,1000000].")
        ratios = self.tokens_per_parameter
        if any(not 0.0 < ratio < math.inf for ratio in ratios):
            raise ConfigError(
                f"ladder.tokens_per_parameter={ratios} are not all above 0. Try ladder.tokens_per_parameter=[1,2,4]."
            )
        for name in ("sizes", "tokens_per_parameter" if ratios else "tokens"):
            values = getattr(self, name)
            if len(set(values)) < 2 or len(set(values)) < len(values):
                raise ConfigError(
                    f"ladder.{name}={values} are not at least two different ones. Try ladder.sizes=[2x64,3x96,4x128] "
                    + ("ladder.tokens_per_parameter=[1,2,4]." if ratios else "ladder.tokens=[500000,1000000,2000000].")
                )


@dataclass
class ScaleConfig(RunConfig):
    """Settings of a training run, and of the ladder of its sizes and lengths."""

    ladder: LadderConfig = field(default_factory=LadderConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resume is not None or self.branch is not None or self.stages or self.size is not None:
            raise ConfigError(
                "scale trains runs of its own from their first step: leave resume, branch, stages and size out. Typed "
                "again, the same command goes on with what is missing."
            )
