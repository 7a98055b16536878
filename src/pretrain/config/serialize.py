"""Settings to plain data and back.

A saved record is data: `from_dict` looks classes up by their `kind` in the registry; it imports nothing by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pretrain.config.registry import choices, groups
from pretrain.config.renamed import with_current_names
from pretrain.config.run import RunConfig
from pretrain.data.config import (
    MixtureSource,
)
from pretrain.errors import ConfigError, nearest, printable
from pretrain.objectives.config import BidirectionalRows, masking_without_effect

MAX_VALUES = 50_000  # of saved settings: a mixture's sources and a classifier's labels are among them


def to_dict(config: object) -> dict[str, Any]:
    """Return settings as plain data that JSON can hold, with enums by name."""

    def plain(value: Any) -> Any:
        if isinstance(value, Enum):
            return value.name
        if isinstance(value, MixtureSource):
            return plain(value.settings())
        if is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list) else value

    return {f.name: plain(getattr(config, f.name)) for f in fields(config)}  # type: ignore[arg-type]


def flat(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each setting of a nested record by its full name, such as model.n_layers."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def from_dict(saved: dict[str, Any], config_class: type = RunConfig) -> Any:
    """Return the settings that `to_dict` wrote; they are data, so nothing in them is looked up or executed.

    Raises ConfigError where a key, a kind or a value is not one we know.
    """
    _check_count(saved)
    saved = _without_unused_masking(with_current_names(saved))
    _refuse_interpolation(saved, "")
    try:
        return objects_of(saved, config_class)
    except UnfitError as error:
        raise ConfigError(f"the saved settings do not fit this version: {error}") from error


class UnfitError(ConfigError):
    """A setting that no class declares, or a value of another type than it declares."""

    def __init__(self, reason: str, key: str) -> None:
        super().__init__(reason)
        self.key = key  # its full name, if known


def objects_of(saved: dict[str, Any], config_class: type) -> Any:
    """Return the dataclasses of plain data. Raises ConfigError where a key, a kind or a value is not one we know."""
    parts: dict[str, type] = {}
    for name, value in saved.items():
        if name in groups() and isinstance(value, dict):
            part_class = choices(name).get(str(value.get("kind")), type(None))
            if part_class is type(None):
                raise ConfigError(_unknown_kind(name, str(value.get("kind")), saved.get("plugins")))
            parts[name] = part_class
    try:
        tree = OmegaConf.structured(config_class)
        for name, part_class in parts.items():
            tree[name] = OmegaConf.structured(part_class)
        return OmegaConf.to_object(OmegaConf.merge(tree, saved))  # once: it copies every value
    except (OmegaConfBaseException, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise UnfitError(reason, str(getattr(error, "full_key", None) or "")) from error


def _unknown_kind(group: str, kind: str, plugins: Any) -> str:
    """Return the error of saved settings whose kind nobody has registered; the plug-ins they name are not imported."""
    named = [name for name in plugins if isinstance(name, str)] if isinstance(plugins, list) else []
    again = f"plugins=[{','.join(named)}]" if named else "plugins=[<its package>]"
    return printable(
        f"{group}.kind={kind} is unknown here: the run was trained with a plug-in that registers it. Name it again: "
        f"{again}, or start the script that registers it. {nearest(kind, choices(group))}",
        one_line=True,
    )


def _without_unused_masking(saved: dict[str, Any]) -> dict[str, Any]:
    """Return saved settings without those of masking that an earlier version accepted where they have no effect."""
    objective = saved.get("objective")
    if not isinstance(objective, dict) or objective.get("bidirectional") != BidirectionalRows.diffusion.name:
        return saved
    unused = masking_without_effect(objective)
    return saved | {"objective": {name: value for name, value in objective.items() if name not in unused}}


def _check_count(saved: dict[str, Any]) -> None:
    """Refuse more values than settings have: each takes a tenth of a millisecond, and a file holds millions."""
    count = 0
    level: list[Any] = [saved]
    while level and count <= MAX_VALUES:
        items = [item for each in level for item in (each.values() if isinstance(each, dict) else each)]
        count, level = count + len(items), [item for item in items if isinstance(item, dict | list)]
    if count > MAX_VALUES:
        raise ConfigError(f"the saved settings hold more than {MAX_VALUES:,} values, which no run has.")


def _refuse_interpolation(value: Any, key: str) -> None:
    """Saved settings hold values only: `${...}` could read the environment of whoever opens them."""
    if isinstance(value, dict):
        for name, item in value.items():
            _refuse_interpolation(item, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for item in value:
            _refuse_interpolation(item, key)
    elif isinstance(value, str) and "${" in value:
        raise ConfigError(f"the saved settings hold {key}={value}; only plain values are read from a file.")
