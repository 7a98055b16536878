"""The registry of what a run can choose: model, objective, data, tokenizer, optimizer, schedule, callbacks, loggers."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from pretrain.config.mixture_sources import typed_sources
from pretrain.config.named_entries import CALLBACKS, LOGGERS, typed_entries
from pretrain.data.config import (
    BPETokenizerConfig,
    BytesTokenizerConfig,
    DataConfig,
    HuggingFaceConfig,
    MixtureConfig,
    PretrainedTokenizerConfig,
    PythonDocsConfig,
    TextFilesConfig,
)
from pretrain.data.fine_tuning_config import LabelledTextConfig, PairsConfig
from pretrain.errors import ConfigError, nearest
from pretrain.models.config import TransformerConfig
from pretrain.objectives.config import CausalConfig, ClassifyConfig, HybridConfig, MaskedConfig
from pretrain.optim.config import AdamWConfig, MuonConfig
from pretrain.optim.schedules import ConstantConfig, CosineConfig, LinearConfig, WSDConfig
from pretrain.training.callback_config import (
    ClassPathCallbackConfig,
    DeviceStatsConfig,
    EarlyStoppingConfig,
    GenerateSamplesConfig,
    LRMonitorConfig,
    RichProgressConfig,
)
from pretrain.training.logger_config import (
    ClassPathLoggerConfig,
    CometConfig,
    CSVConfig,
    MLflowConfig,
    TensorBoardConfig,
    WandbConfig,
    check_one_per_run,
)

_BUILT_IN: dict[str, tuple[type, ...]] = {
    "model": (TransformerConfig,),
    "objective": (CausalConfig, MaskedConfig, HybridConfig, ClassifyConfig),
    "data": (PythonDocsConfig, TextFilesConfig, HuggingFaceConfig, MixtureConfig, PairsConfig, LabelledTextConfig),
    "tokenizer": (BytesTokenizerConfig, BPETokenizerConfig, PretrainedTokenizerConfig),
    "optimizer": (AdamWConfig, MuonConfig),
    "schedule": (CosineConfig, WSDConfig, LinearConfig, ConstantConfig),
    "callback": (
        EarlyStoppingConfig,
        LRMonitorConfig,
        DeviceStatsConfig,
        GenerateSamplesConfig,
        RichProgressConfig,
        ClassPathCallbackConfig,
    ),
    "logger": (TensorBoardConfig, CSVConfig, WandbConfig, MLflowConfig, CometConfig, ClassPathLoggerConfig),
}
_OF_ENTRIES = ("callback", "logger")  # a run has any number of them, each with a name


_REGISTERED: dict[str, dict[str, type]] = {}


def register(group: str, config_class: type) -> None:
    """Add a dataclass of your own to the choices of `group`; its `kind` default is its name.

    Call it from a package with an entry point in the group `pretrain.plugins`, or before `main()` in a script.
    """
    if group not in _BUILT_IN:
        raise ConfigError(
            f"there is no group {group!r} to register {config_class.__name__} in. {nearest(group, _BUILT_IN)}"
        )
    _REGISTERED.setdefault(group, {})[kind_of(config_class)] = config_class


def kind_of(config_class: type) -> str:
    """Return the name by which a saved record refers to this class."""
    return str(next(f.default for f in fields(config_class) if f.name == "kind"))


def choices(group: str) -> dict[str, type]:
    """Return the classes of a group by kind: built in, from plugins, and registered."""
    _load_plugins()
    return {kind_of(c): c for c in _BUILT_IN[group]} | _REGISTERED.get(group, {})


def registered(group: str) -> dict[str, type]:
    """Return the classes that plugins and scripts have added to a group, by kind; none for a group of plain presets."""
    _load_plugins()
    return dict(_REGISTERED.get(group, {}))


@cache
def _load_plugins() -> None:
    for point in entry_points(group="pretrain.plugins"):
        point.load()()


def groups() -> list[str]:
    """Return the names of the groups of which a run chooses one kind."""
    return [name for name in _BUILT_IN if name not in _OF_ENTRIES]


def with_typed_sources(data: DataConfig) -> DataConfig:
    """Return the data settings with those of a mixture's sources typed, for which the registry must be known."""
    return typed_sources(data, choices("data")) if isinstance(data, MixtureConfig) else data


def typed_callbacks(written: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the callbacks by name, typed; raises ConfigError as `typed_entries` does."""
    return typed_entries(CALLBACKS, written, choices("callback"))


def typed_loggers(written: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the loggers by name, typed; raises ConfigError also for two that write the same files."""
    loggers = typed_entries(LOGGERS, written, choices("logger"))
    check_one_per_run(loggers)
    return loggers
