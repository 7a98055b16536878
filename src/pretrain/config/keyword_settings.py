"""Settings given as Python values, such as `trainer={"max_steps": 20}`, as overrides of the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from pretrain.config.command_line import is_hydras
from pretrain.config.overrides import quoted, unquoted
from pretrain.config.preset_folders import is_group
from pretrain.errors import ConfigError, shown

PRESET = "preset"  # the key of a mapping that chooses the preset of its group


def overrides_of(settings: Mapping[str, Any]) -> list[str]:
    """Return settings by name, those of a group in a mapping, as overrides `key=value`; presets come first.

    A text for a group is its preset. In a mapping, `preset` chooses one: `data={"preset": "text_files", "path": "a"}`.
    Raises ConfigError for a value that no setting has.
    """
    words = [word for key, value in settings.items() for word in _words(key, value)]
    return sorted(words, key=lambda word: not is_group(word.partition("=")[0]))  # stable: else in the given order


def _words(key: str, value: Any) -> Iterator[str]:
    if not isinstance(key, str) or not re.fullmatch(r"\w+([./]\w+|\.[\w-]+)*", key) or is_hydras(key):
        raise ConfigError(
            f"{str(key)[:100]!r} is no name of a setting. Settings have names such as seed or model.n_layers."
        )
    if not isinstance(value, Mapping) or (not value and not is_group(key)):
        yield f"{key}={_written(key, value)}"
        return
    for name, item in value.items():
        if name == PRESET and is_group(key):
            yield f"{key}={_written(key, item)}"
        else:
            yield from _words(f"{key}.{name}", item)


def _written(key: str, value: Any) -> str:
    """Return a value in Hydra's grammar, a text as a person would type it where that means the same."""
    if isinstance(value, str | Path) and not isinstance(value, Enum):
        text = str(value)
        plain = re.fullmatch(r"[\w./+-]+", text, re.ASCII) and isinstance(text, str) and unquoted(text) == text
        return text if plain else quoted(_with_home(text, value), interpolates=True)
    return _nested(key, value)


def _with_home(text: str, value: str | Path) -> str:
    """Return a path with the home folder for ~, which Hydra's quotes would keep."""
    return str(Path(text).expanduser()) if isinstance(value, Path) or text.startswith("~/") else text


def _nested(key: str, value: Any) -> str:
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a number of NumPy's or torch's
        value = value.item()
    if value is None or isinstance(value, bool | int | float | Enum):
        return shown(value)
    if isinstance(value, str | Path):
        return quoted(str(value), interpolates=True)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{_nested(key, item)}" for name, item in value.items()) + "}"
    if isinstance(value, Sequence | set | frozenset | range) and not isinstance(value, bytes):
        return "[" + ",".join(_nested(key, item) for item in value) + "]"
    raise ConfigError(
        f"{key} is an object of {type(value).__name__}, and a setting is a text, a number, true or false, None, or a "
        f'list or mapping of these. Try a preset by name, such as model="gpt_nano", or {{"n_layers": 4}}.'
    )
