"""Which settings of a run differ from the presets that it chose, each with its line of help."""

from __future__ import annotations

import typing
from dataclasses import dataclass, is_dataclass
from typing import Any

from pretrain.config.declared import alternatives, type_hints
from pretrain.config.named_entries import SECTIONS, STAGES, section_of
from pretrain.config.registry import choices, groups
from pretrain.config.run import RunConfig
from pretrain.config.serialize import flat
from pretrain.config.setting import description
from pretrain.data.config import MixtureSource
from pretrain.errors import PretrainError, shown

_OF_THE_FOLDERS = ("paths.", "name")  # where a run lies says nothing about it


@dataclass(frozen=True)
class Changed:
    """A setting whose value is not that of the presets."""

    key: str
    value: str
    preset: str | None  # None: it has no value there, or the presets are unknown
    about: str


@dataclass(frozen=True)
class Settings:
    """The settings of a run, compared with its presets."""

    presets: list[str]  # that it chose, such as model=gpt_nano
    changed: list[Changed]
    compared: bool  # False: the presets are not here, and `changed` are the settings that were typed


def compare(saved: dict[str, Any], typed: list[str]) -> Settings:
    """Return what the settings `saved` change in the presets that the overrides `typed` choose."""
    from pretrain.config.preset_folders import is_group  # here: it loads Hydra

    words = [word.lstrip("+~") for word in typed]
    chosen = [word for word in words if is_group(word.partition("=")[0])]
    mine = dict(flat(saved))
    preset = _preset_values(chosen)
    if preset is None:
        keys = [word.partition("=")[0] for word in words if word not in chosen]
        differing = [key for key in mine if any(f"{key}.".startswith(f"{each}.") for each in keys)]
    else:
        differing = [key for key, value in mine.items() if key not in preset or value != preset[key]]
    changed = [
        Changed(key, shown(mine[key]), shown(preset[key]) if preset and key in preset else None, about(key, saved))
        for key in differing
        if not key.startswith(_OF_THE_FOLDERS) and not _is_default(key, saved)
    ]
    return Settings(chosen, changed, preset is not None)


def _preset_values(chosen: list[str]) -> dict[str, Any] | None:
    """Return the settings that presets alone make, by full names; None where one is not here, as those of plug-ins."""
    from omegaconf import MISSING, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from pretrain.config.compose import composed, register_schemas

    register_schemas("train", RunConfig)
    try:
        tree, _ = composed("train", chosen)
        OmegaConf.set_struct(tree, False)
        del tree.hydra
        plain = OmegaConf.to_container(tree, resolve=True, enum_to_str=True)
    except (PretrainError, OmegaConfBaseException):
        return None
    assert isinstance(plain, dict)
    values = dict(flat(typing.cast(dict[str, Any], plain)))
    return {key: value for key, value in values.items() if value != MISSING}


def about(key: str, saved: dict[str, Any]) -> str:
    """Return the line of help of a setting; empty where its class is not known here."""
    kind: Any = RunConfig
    *way, name = key.split(".")
    if key.startswith(f"{STAGES}.") and len(way) > 1:
        return about(".".join([*way[2:], name]), saved)
    if (section := section_of(key)) is not None and section in SECTIONS:  # entries whose names are the user's
        entry = _at(saved, way)
        kinds = choices(SECTIONS[section].group).get(str(entry.get("kind")) if isinstance(entry, dict) else "")
        return next((description(each, name).about for each in (kinds, MixtureSource) if _has(each, name)), "")
    for position, part in enumerate(way):
        node = _at(saved, way[: position + 1])
        kind = _class_of(kind, part, node)
        if kind is None:
            return ""
    return description(kind, name).about if _has(kind, name) else ""


def _has(kind: Any, name: str) -> bool:
    return kind is not None and name in kind.__dataclass_fields__


def _at(saved: dict[str, Any], way: list[str]) -> Any:
    """Return the group of saved settings below these names; None where there is none."""
    node: Any = saved
    for part in way:
        node = node.get(part) if isinstance(node, dict) else None
    return node


def _is_default(key: str, saved: dict[str, Any]) -> bool:
    """Whether a setting of a named entry has the default of its class: nobody chose it."""
    *way, name = key.split(".")
    section, entry = section_of(key), _at(saved, way)
    if section not in SECTIONS or not isinstance(entry, dict):
        return False
    kind: Any = choices(SECTIONS[section].group).get(str(entry.get("kind")))
    return name != "kind" and _has(kind, name) and shown(kind.__dataclass_fields__[name].default) == shown(entry[name])


def _class_of(parent: Any, name: str, node: Any) -> Any:
    """Return the dataclass of a group of settings; None where there is none."""
    if name not in parent.__dataclass_fields__:
        return None
    if parent is RunConfig and name in groups() and isinstance(node, dict):
        return choices(name).get(str(node.get("kind")))
    inner = [each for each in alternatives(type_hints(parent).get(name)) if is_dataclass(each)]
    return inner[0] if inner else None
