"""The registry of what a run can choose: model, objective, data, tokenizer, optimizer, schedule, callbacks, loggers."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pretrain.config.mixture_sources import typed_sources
from pretrain.config.named_entries import CALLBACKS, LOGGERS, typed_entries
from pretrain.data.config import (
    BPETokenizerConfig,
    BytesTokenizerConfig,
    CuratedConfig,
    DataConfig,
    HuggingFaceConfig,
    MixtureConfig,
    PretrainedTokenizerConfig,
    PythonDocsConfig,
    TextFilesConfig,
    TokenizerConfig,
)
from pretrain.data.curation.config import SOURCE_KINDS
from pretrain.data.fine_tuning_config import ChatConfig, LabeledTextConfig, PairsConfig, RelatedTextsConfig
from pretrain.data.prepared_config import PreparedConfig, PreparedTokenizerConfig
from pretrain.errors import ConfigError, nearest, printable, shown
from pretrain.evaluation.task import TaskConfig
from pretrain.models.config import ModelConfig, TransformerConfig
from pretrain.objectives.config import CausalConfig, DiffusionConfig, HybridConfig, MaskedConfig, ObjectiveConfig
from pretrain.objectives.fine_tuning_config import ClassifyConfig, ContrastiveConfig, RegressConfig
from pretrain.optim.config import AdamWConfig, MuonConfig, OptimizerConfig, StableAdamWConfig
from pretrain.optim.schedules import ConstantConfig, CosineConfig, LinearConfig, ScheduleConfig, WSDConfig
from pretrain.training.callback_config import (
    CallbackConfig,
    ClassPathCallbackConfig,
    DeviceStatsConfig,
    EarlyStoppingConfig,
    GenerateSamplesConfig,
    LRMonitorConfig,
    OptunaPruningConfig,
    RichProgressConfig,
)
from pretrain.training.logger_config import (
    ClassPathLoggerConfig,
    CometConfig,
    CSVConfig,
    LoggerConfig,
    MLflowConfig,
    TensorBoardConfig,
    WandbConfig,
    check_one_per_run,
)

_BUILT_IN: dict[str, tuple[type, ...]] = {
    "model": (TransformerConfig,),
    "objective": (
        CausalConfig,
        MaskedConfig,
        HybridConfig,
        DiffusionConfig,
        ClassifyConfig,
        RegressConfig,
        ContrastiveConfig,
    ),
    "data": (
        PythonDocsConfig,
        TextFilesConfig,
        HuggingFaceConfig,
        CuratedConfig,
        PreparedConfig,
        MixtureConfig,
        PairsConfig,
        ChatConfig,
        LabeledTextConfig,
        RelatedTextsConfig,
    ),
    "tokenizer": (BytesTokenizerConfig, BPETokenizerConfig, PretrainedTokenizerConfig, PreparedTokenizerConfig),
    "optimizer": (AdamWConfig, MuonConfig, StableAdamWConfig),
    "schedule": (CosineConfig, WSDConfig, LinearConfig, ConstantConfig),
    "callback": (
        EarlyStoppingConfig,
        LRMonitorConfig,
        DeviceStatsConfig,
        GenerateSamplesConfig,
        RichProgressConfig,
        OptunaPruningConfig,
        ClassPathCallbackConfig,
    ),
    "logger": (TensorBoardConfig, CSVConfig, WandbConfig, MLflowConfig, CometConfig, ClassPathLoggerConfig),
    "task": (),  # of your own for eval.py
    "corpus_source": tuple(SOURCE_KINDS.values()),
}
_OF_ENTRIES = ("callback", "logger", "task", "corpus_source")  # of which a run has any number

_BASES: dict[str, type] = {
    "model": ModelConfig,
    "objective": ObjectiveConfig,
    "data": DataConfig,
    "tokenizer": TokenizerConfig,
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
    "task": TaskConfig,
    "callback": CallbackConfig,
    "logger": LoggerConfig,
}

_REGISTERED: dict[str, dict[str, type]] = {}


def register(group: str, config_class: type) -> None:
    """Add a dataclass of your own to the choices of `group`; its `kind` default is its name.

    Call it from a package that `plugins=[...]` names or that has an entry point in the group `pretrain.plugins`, or
    before `main()` in a script. Raises ConfigError for a class that does not derive from the group's, whose docstring
    says what it must have, and for a kind that another class has.
    """
    if group not in _BASES:
        raise ConfigError(
            f"there is no group {group!r} to register {config_class.__name__} in. {nearest(group, _BASES)}"
        )
    base = _BASES[group]
    if not (issubclass(config_class, base) and "__dataclass_fields__" in vars(config_class)):
        raise ConfigError(
            f"{config_class.__name__} is no dataclass that derives from {base.__name__}, as all of group {group!r} do. "
            f"Write: @dataclass class {config_class.__name__}({base.__name__})."
        )
    kind, known = kind_of(config_class), _REGISTERED.setdefault(group, {})
    taken = known.get(kind) or {kind_of(each): each for each in _BUILT_IN[group]}.get(kind)
    if kind == "?" or (taken is not None and _origin(taken) != _origin(config_class)):
        reason = "has no kind of its own" if taken is None else f"is of kind {kind!r}, as {taken.__name__} is already"
        raise ConfigError(
            f'{config_class.__name__} {reason}. Give it one in its class: kind: str = "my_{kind.strip("?") or group}".'
        )
    known[kind] = config_class


def _origin(config_class: type) -> str:
    """Return the name of a class in its file; a script that is imported again in another process defines it anew."""
    return config_class.__qualname__


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
    """Load the packages that are installed as plug-ins: each entry point is a function to call, or a module."""
    for point in entry_points(group="pretrain.plugins"):
        try:
            loaded = point.load()
            if callable(loaded):
                loaded()
        except Exception as error:
            raise _not_loaded(f"the plug-in {point.name}={point.value}", error, "Repair or uninstall it.") from error


_MODULE_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def load_plugins(names: Sequence[str]) -> None:
    """Import the modules that the user named in `plugins=[...]`, which register their classes as they are imported.

    Never call it with names from a saved file. Raises ConfigError for a module that cannot be imported.
    """
    for name in names:
        if not _MODULE_NAME.fullmatch(name):
            raise ConfigError(
                f"plugins={name!a} is not the name of a module. Write the name that import takes: plugins=[my_package]."
            )
        try:
            import_named(name)
        except Exception as error:
            remedy = "Install it, or start in the folder in which it lies."
            raise _not_loaded(f"plugins=[{name}]", error, remedy) from error


def import_named(module: str) -> ModuleType:
    """Import a module that the user named, from the working directory too; never call it with a saved file's name."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # as `python -m` has it: an installed command has no folder there
    return import_module(module)


def _not_loaded(what: str, error: Exception, remedy: str) -> ConfigError:
    if isinstance(error, ConfigError):
        return error
    reason = printable(f"{type(error).__name__}: {error}", one_line=True)
    return ConfigError(f"{what} cannot be imported: {reason}. {remedy}")


def groups() -> list[str]:
    """Return the names of the groups of which a run chooses one kind."""
    return [name for name in _BUILT_IN if name not in _OF_ENTRIES]


def typed_tasks(written: Sequence[Any]) -> list[TaskConfig]:
    """Return the settings of registered tasks, from kinds or from mappings of a kind with its settings.

    Raises ConfigError for a kind that is not registered, and for a setting that its task does not have.
    """
    return [each if isinstance(each, TaskConfig) else _typed_task(each) for each in written]


def _typed_task(written: Any) -> TaskConfig:
    settings = dict(written) if isinstance(written, dict) else {"kind": written}
    kind, known = str(settings.get("kind")), choices("task")
    if kind not in known:
        there = f" {nearest(kind, known)}" if known else ""
        raise ConfigError(
            f"tasks=[{kind}] is not registered.{there} Name the package that registers it: plugins=[my_package]."
        )
    declared = {field.name: field for field in fields(known[kind])}
    for name in settings:
        if name not in declared:
            raise ConfigError(f"{name} is not a setting of the task {kind}. {nearest(str(name), declared)}")
    tree = OmegaConf.structured(known[kind])
    try:
        typed: TaskConfig = OmegaConf.to_object(OmegaConf.merge(tree, settings))  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        name, reason = re.split(r"[.\[]", str(error.full_key))[0], str(error).splitlines()[0].rstrip(".")
        raise ConfigError(
            f"{name}={shown(settings.get(name))} in tasks=[{{kind: {kind}, ...}}] does not fit: {reason}. "
            "Leave it out, for the task's own value."
        ) from error
    return typed


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
