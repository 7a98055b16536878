"""Settings of the scripts beside training."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from pretrain.config.registry import with_typed_sources
from pretrain.data.config import DataConfig, TokenizerConfig
from pretrain.errors import ConfigError
from pretrain.training.config import PathsConfig


@dataclass
class PrepareConfig:
    """Text to a token store, without training."""

    data: DataConfig = MISSING
    tokenizer: TokenizerConfig = MISSING
    paths: PathsConfig = field(default_factory=PathsConfig)

    def __post_init__(self) -> None:
        self.data = with_typed_sources(self.data)


@dataclass
class InspectConfig:
    """What a step of a run read."""

    run: str = "auto"  # a run folder; auto: the newest run
    step: int = MISSING  # from 1 on
    characters: int = 200  # of each document to show
    paths: PathsConfig = field(default_factory=PathsConfig)

    def __post_init__(self) -> None:
        if self.characters < 0:
            raise ConfigError(f"characters={self.characters} is negative. Try characters=200.")


@dataclass
class ExportConfig:
    """Write a trained model as a Hugging Face folder, and compare what transformers computes with it."""

    checkpoint: str = "auto"  # a run folder, one of its checkpoints, or a Hugging Face folder; auto: the newest run
    output: str = MISSING  # the folder to make
    family: str = "auto"  # a model_type of transformers: gpt2, llama, ...; auto: the first that computes the same
    license: str | None = None  # of the weights, for the model card: an SPDX name such as apache-2.0
    max_shard_bytes: int = 5_000_000_000  # of one file of weights
    paths: PathsConfig = field(default_factory=PathsConfig)

    def __post_init__(self) -> None:
        if self.max_shard_bytes < 1:
            raise ConfigError(f"max_shard_bytes={self.max_shard_bytes} is below 1. Try max_shard_bytes=5000000000.")
