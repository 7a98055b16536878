"""Settings of the scripts that prepare, inspect, report, average and export."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from omegaconf import MISSING

from pretrain.config.registry import with_typed_sources
from pretrain.config.setting import Settings, plugins_setting, setting
from pretrain.data.config import DataConfig, MixtureConfig, Mode, TokenizerConfig
from pretrain.data.prepared_config import PreparedConfig
from pretrain.errors import ConfigError
from pretrain.files.object_storage import refuse_address
from pretrain.training.config import PathsConfig, SavedWeights

# the hub's rule for names: https://huggingface.co/docs/huggingface_hub/package_reference/hf_api
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/(?!.*(--|\.\.))[A-Za-z0-9_]([\w.-]{0,94}[A-Za-z0-9_])?", re.ASCII)


@dataclass
class PrepareConfig(Settings):
    """Text to a token store, without training."""

    data: DataConfig = MISSING
    tokenizer: TokenizerConfig = MISSING
    output: str | None = setting(
        None, "Also write stores and tokenizer to this folder, which data=prepared reads on any machine; null: only to "
        "the cache.", example="my_store",
    )  # fmt: skip
    plugins: list[str] = plugins_setting()
    paths: PathsConfig = field(default_factory=PathsConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.data = with_typed_sources(self.data)
        if self.output is not None:
            self._check_output()

    def _check_output(self) -> None:
        """Raise ConfigError for an output that is no folder here, and for data without one pair of stores."""
        data, output = self.data, f"output={self.output}"
        refuse_address("output", self.output, "Try output=my_store, and copy it there, manifest.json last.")
        if data.mode is Mode.stream:
            raise ConfigError(
                f"{output} takes finished token stores, and data.mode=stream tokenizes during a run. Try "
                "data.mode=prepare."
            )
        if isinstance(data, MixtureConfig):
            raise ConfigError(
                f"{output} takes the stores of one source, and data.kind=mixture has several. Prepare each with one "
                "tokenizer, such as tokenizer=gpt2, and mix the folders: data.sources.<name>.kind=prepared."
            )
        if isinstance(data, PreparedConfig):
            raise ConfigError(
                f"{output} takes what is tokenized now, and data.path={data.path} holds finished token stores. Copy "
                "that folder instead, manifest.json last, and leave output out."
            )
        if data.annotated:
            raise ConfigError(
                f"{output} takes text for pre-training, and data.kind={data.kind} is for fine-tuning: its files are "
                "small, and are prepared where they are read. Leave output out."
            )


@dataclass
class InspectConfig(Settings):
    """The rows that a step of a run read."""

    run: str = setting("auto", "A run folder; auto: the newest run.")
    step: int = setting(MISSING, "The optimizer step, from 1 on.", bounds="[1, inf)", example=1)
    characters: int = setting(200, "Characters of each document to print.", bounds="[0, inf)", unit="characters")
    plugins: list[str] = plugins_setting()
    paths: PathsConfig = field(default_factory=PathsConfig)


@dataclass
class ReportConfig(Settings):
    """Write the report of a run, of a sweep, of any folder of runs, or of a corpus."""

    path: str = setting("auto", "A run, a folder of runs such as logs/sweep, or a corpus; auto: the newest run.")
    output: str | None = setting(None, "The file to write; null: report.html in the folder.", example="report.html")
    plugins: list[str] = plugins_setting()
    paths: PathsConfig = field(default_factory=PathsConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_address("output", self.output, "Try output=report.html, and copy it there.")


@dataclass
class CompareConfig(Settings):
    """Compare runs, or groups of runs that differ in their seed, with the first of them."""

    runs: list[str] = setting(
        default_factory=list,
        about="Runs and folders of runs; those whose settings differ only in the seed are one group.",
    )
    metric: str = setting("auto", "Metric to compare by; auto: val/loss, or bits per byte where tokenizers differ.")
    target: float | None = setting(
        None, "Steps, tokens and seconds are counted to this value; null: to the worst final one.",
        bounds="(-inf, inf)", example=3.28,
    )  # fmt: skip
    confidence: float = setting(0.95, "Of intervals, and 1 less the p-value that counts.", bounds="(0.0, 1.0)")
    output: str | None = setting(
        None, "The page to write, and JSON beside it; null: compare.html in paths.logs_dir.", example="compare.html"
    )
    plugins: list[str] = plugins_setting()
    paths: PathsConfig = field(default_factory=PathsConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_address("output", self.output, "Try output=compare.html, and copy it there.")
        if self.output is not None and not self.output.endswith(".html"):
            raise ConfigError(
                f"output={self.output} is no .html file, beside which .json fits. Try output=compare.html."
            )


@dataclass
class AverageConfig(Settings):
    """Average the weights of checkpoints, which often scores better than the last of them before a decay."""

    run: str = setting("auto", "A run folder, whose last checkpoints are averaged; auto: the newest run.")
    last: int = setting(5, "How many of them.", bounds="[2, inf)", unit="checkpoints")
    checkpoints: list[str] = setting(
        default_factory=list,
        about="Checkpoints to average instead, of any runs of one shape; settings are of the last.",
    )
    output: str = setting(MISSING, "The folder to write; it reads as a run with one checkpoint.")
    plugins: list[str] = plugins_setting()
    paths: PathsConfig = field(default_factory=PathsConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_address("output", self.output, "Try output=averaged, and copy it there, manifest.json last.")


@dataclass
class ExportConfig(Settings):
    """Write a trained model as a Hugging Face folder, and compare its logits with those of transformers."""

    checkpoint: str = setting("auto", "A run, one of its checkpoints, or a Hugging Face folder; auto: the newest run.")
    weights: SavedWeights = setting(SavedWeights.trained, "Weights of the run: trained, or ema, their moving average.")
    output: str = setting(MISSING, "The folder to write.")
    family: str = setting(
        "auto", "A model_type of transformers, such as gpt2 or llama; auto: the first that computes the same."
    )
    adapters: bool = setting(False, "Write the adapters of a LoRA run alone, as a folder of the PEFT library.")
    sentence_transformers: bool = setting(
        False, "Add the files of the sentence-transformers library; a model trained by objective=contrastive has them."
    )
    evaluations: list[str] = setting(
        default_factory=list,
        about="Files that eval.py wrote with output=... for this checkpoint; the model card shows them.",
    )
    license: str | None = setting(None, "License of the weights, for the model card: an SPDX name such as apache-2.0.")
    max_shard_bytes: int = setting(
        5_000_000_000, "Largest size of one file of weights.", bounds="[1, inf)", unit="bytes"
    )
    push: str | None = setting(None, "Send the folder to this repository of the Hugging Face hub, as owner/name.")
    public: bool = setting(False, "Whether everybody may see the repository of push; false: private.")
    plugins: list[str] = plugins_setting()
    paths: PathsConfig = field(default_factory=PathsConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_address("output", self.output, "Try output=my_model, and copy it there.")
        if self.push is not None and not _REPOSITORY.fullmatch(self.push):
            raise ConfigError(f"push={self.push} is no owner/name of the hub. Try push=ada/my_model.")
        if self.public and self.push is None:
            raise ConfigError("public=true belongs to push, which is null. Try push=ada/my_model, or public=false.")
