"""Settings of `python src/plan.py`: those of the training run to plan, and of its target machine."""

from dataclasses import dataclass, fields
from enum import Enum

from pretrain.config.run import RunConfig
from pretrain.config.setting import setting
from pretrain.errors import ConfigError
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
