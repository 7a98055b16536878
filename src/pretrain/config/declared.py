"""What the dataclasses of a script declare: the types of a setting by its full name, and every setting there is."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cache
from typing import Any

from pretrain.config.named_entries import SECTIONS, SOURCES, STAGES
from pretrain.config.registry import choices, groups
from pretrain.data.config import MixtureConfig, MixtureSource
from pretrain.training.config import StageEnd


def types_of(config_class: type, key: str) -> set[Any]:
    """Return the types that a setting may have, in any kind of its group that has it; none where it is no setting."""
    found: set[Any] = {config_class}
    parts, at = key.split("."), ""
    if parts[0] == STAGES and len(parts) > 2 and types_of(config_class, STAGES):  # ends, or settings of the run
        parts = parts[2:]
        found = {StageEnd} if parts[0] in type_hints(StageEnd) else found
    while parts:
        part = parts.pop(0)
        at = f"{at}.{part}".lstrip(".")
        hints = [type_hints(typing.cast(type, each)).get(part) for each in found if is_dataclass(each)]
        found = {kind for hint in hints if hint is not None for kind in alternatives(hint)}
        if at in groups() and found:
            found = set(choices(at).values())
        elif at in SECTIONS and found and parts:
            parts.pop(0)  # the name that the user gave the entry
            found = set(_entry_kinds(at))
    return found


def kinds_with(group: str, name: str) -> list[str]:
    """Return the kinds of a group that have a setting of this name, which may have several parts."""
    return [kind for kind, choice in choices(group).items() if types_of(choice, name)]


def every_setting(config_class: type) -> list[str]:
    """Return the full name of every setting of a script, of all kinds, in the order of their declaration."""
    return list(dict.fromkeys(_below(config_class, "")))


def _below(config_class: type, prefix: str) -> Iterator[str]:
    for name, hint in type_hints(config_class).items():
        key = f"{prefix}{name}"
        inner = choices(key).values() if key in groups() else filter(is_dataclass, alternatives(hint))
        nested = [setting for each in inner for setting in _below(typing.cast(type, each), f"{key}.")]
        yield from nested or [key]


def _entry_kinds(section: str) -> list[type]:
    """Return the classes of settings that an entry of a section may have."""
    if section == SOURCES.key:
        return [MixtureSource, *(each for each in choices("data").values() if not issubclass(each, MixtureConfig))]
    return list(choices(SECTIONS[section].group).values())


@cache
def type_hints(config_class: Any) -> dict[str, Any]:
    """Return the types of a dataclass's fields, but for a `kind` that chooses the class itself."""
    hints = typing.get_type_hints(config_class)
    names = [name for name in hints if name in config_class.__dataclass_fields__]
    return {name: hints[name] for name in names if name != "kind" or hints[name] is not str}


def alternatives(hint: Any) -> list[Any]:
    """Return the types of a union, None among them; of any other type, it alone."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return list(typing.get_args(hint))
    return [hint]
