"""The closed registry of what a run can choose: model, objective, data, tokenizer, optimizer, schedule."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from importlib.metadata import entry_points

from pretrain.config.mixture_sources import typed_sources
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

_BUILT_IN: dict[str, tuple[type, ...]] = {
    "model": (TransformerConfig,),
    "objective": (CausalConfig, MaskedConfig, HybridConfig, ClassifyConfig),
    "data": (PythonDocsConfig, TextFilesConfig, HuggingFaceConfig, MixtureConfig, PairsConfig, LabelledTextConfig),
    "tokenizer": (BytesTokenizerConfig, BPETokenizerConfig, PretrainedTokenizerConfig),
    "optimizer": (AdamWConfig, MuonConfig),
    "schedule": (CosineConfig, WSDConfig, LinearConfig, ConstantConfig),
}


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
    """Return the names of the groups whose settings differ by kind."""
    return list(_BUILT_IN)


def with_typed_sources(data: DataConfig) -> DataConfig:
    """Return the data settings with those of a mixture's sources typed, for which the registry must be known."""
    return typed_sources(data, choices("data")) if isinstance(data, MixtureConfig) else data
