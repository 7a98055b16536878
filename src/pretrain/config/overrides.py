"""Overrides as the shell passes them, made into overrides of Hydra's grammar: quoting once, in the shell, is enough.

What a setting is declared as decides how its value is read: text is text, whatever characters it holds, and 1e9 is a
whole number where one is asked for. A text in Hydra's own quotes ('...' or "...") is what stands inside them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pretrain.config.declared import types_of
from pretrain.config.whole_numbers import is_whole, with_whole_numbers, written_out
from pretrain.errors import ConfigError

# last parts of settings that name a file or folder, where ~ is the home folder as it is after a blank
_PATHS = (
    "path", "validation_path", "logs_dir", "cache_dir", "run_dir", "resume", "init_from", "checkpoint", "run", "output",
)  # fmt: skip


_FUNCTION = re.compile(r"(choice|range|interval|glob|sort|shuffle|tag|str|int|float|bool|json_str|extend_list)\(.*\)")


_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)


def as_hydra_reads(override: str, config_class: type, *, sweep: bool = False) -> str:
    """Return an override `key=value` with the value quoted for Hydra's grammar where that would refuse or change it.

    In a `sweep`, commas separate values; those of folders do not, as a sweep has one of each.
    """
    key, equals, value = override.partition("=")
    name = key.lstrip("+")
    kinds = types_of(config_class, name) if equals else set()
    if str in kinds and int not in kinds:  # a number or a word such as auto needs no quotes
        several = sweep and not name.startswith("paths.")
        if several and _FUNCTION.fullmatch(value):
            return override
        values = split(value) if several else [value]
        return f"{key}={','.join(_text(each, name) for each in values)}"
    if equals and is_whole(config_class, name):
        return f"{key}={','.join(map(written_out, value.split(',')))}"
    if value[:1] in ("[", "{"):
        return f"{key}={_collection(value, config_class, name)}"
    return override


def quoted(text: str, *, interpolates: bool = False) -> str:
    """Return a text as Hydra's grammar has it in quotes; `${` is taken as it stands unless it `interpolates`."""
    if not interpolates:
        text = re.sub(r"(\\*)\$\{", lambda match: 2 * match[1] + "\\${", text)
    return "'" + re.sub(r"(\\*)('|\Z)", lambda match: 2 * match[1] + ("\\'" if match[2] else ""), text) + "'"


def quote(override: str, free_text: str) -> str:
    """Return `prompt=any text` with the text quoted for Hydra's grammar, other overrides as they are."""
    key, equals, value = override.partition("=")
    return f"{key}={quoted(value)}" if free_text and key == free_text and equals else override


def unquoted(value: str) -> str:
    """Return the text that a value of Hydra's grammar stands for."""
    found = _parsed(value)
    return found if isinstance(found, str) else value


def split(value: str) -> list[str]:
    r"""Return the values of a sweep over texts: at commas, but for those in quotes and those written as \,."""
    found, start = [], 0
    for match in re.finditer(rf"{_QUOTED.pattern}|\\.|,", value, re.DOTALL):
        if match[0] == ",":
            found.append(value[start : match.start()].strip())
            start = match.end()
    return [*found, value[start:].strip()]


class _Unreadable:
    """A value outside Hydra's grammar."""


_UNREADABLE = _Unreadable()


def _parsed(value: str) -> Any:
    """Return what Hydra makes of one value; of several, and of what it cannot read, _UNREADABLE."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        found = OverridesParser.create().parse_override(f"x={value}")
        return _UNREADABLE if found.is_sweep_override() else found.value()
    except HydraException:
        return _UNREADABLE


def _text(value: str, name: str) -> str:
    """Return a text as Hydra reads it; left as it was typed where that already is what Hydra makes of it."""
    found = _parsed(value)
    if found is None or (isinstance(found, str) and (found == value or _QUOTED.fullmatch(value) or "\\" in value)):
        return value  # null, a text that needs no quotes, has them, or is written with Hydra's escapes
    return quoted(in_home(value) if name.rpartition(".")[2] in _PATHS else value, interpolates=True)


def in_home(path: str) -> str:
    """Return a path with the home folder for a ~ at its beginning, which shells leave after an equals sign."""
    return str(Path.home()) + path[1:] if path == "~" or path.startswith("~/") else path


def _collection(value: str, config_class: type, name: str) -> str:
    """Return a list or mapping with its whole numbers written out; else as it is.

    One that YAML can read and Hydra cannot has its texts quoted.
    """
    import yaml

    found = typed = _parsed(value)
    try:
        if typed is _UNREADABLE:
            found = yaml.safe_load(value)
        whole = with_whole_numbers({name: found}, config_class)[name]
        return value if repr(whole) == repr(typed) else _written(whole)
    except (yaml.YAMLError, ValueError, RecursionError):
        return value


def _written(value: Any) -> str:
    """Return plain data in Hydra's grammar; raises ValueError where it is something else."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{_key(key)}:{_written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_written, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, str):
        return quoted(value, interpolates=True)
    raise ValueError("not plain data")


def _key(key: Any) -> str:
    if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z_][A-Za-z0-9_-]*)*", key):
        raise ValueError("not a name")
    return key


def parsed(words: list[str]) -> list[Any]:
    """Return Hydra's reading of overrides; `glob` lists presets where Hydra is at work.

    Raises ConfigError for one outside its grammar.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    hydra = GlobalHydra.instance().hydra
    parser = OverridesParser.create(config_loader=None if hydra is None else hydra.config_loader)
    try:
        return list(parser.parse_overrides(words))
    except OverrideParseException as error:
        raise ConfigError(f"the sweep cannot be read: {str(error).splitlines()[0]}") from error


def first_values(words: list[str]) -> list[str]:
    """Return overrides with one value each: of those that are swept the first, of an interval its start."""
    from hydra.core.override_parser.types import IntervalSweep

    first = []
    for override in parsed(words):
        value, key = override.value(), override.get_key_element()
        if isinstance(value, IntervalSweep):
            first.append(f"{key}={value.start}")
        elif override.is_sweep_override():
            chosen = next(iter(override.sweep_string_iterator()), None)
            if chosen is None:
                raise ConfigError(f"{override.input_line} stands for no value at all. List the values: {key}=1,2,3.")
            first.append(f"{key}={chosen}")
        else:
            first.append(str(override.input_line))
    return first
