"""Mappings whose entries the user names: sources of a mixture, callbacks, loggers. From what was written to settings.

An entry is a mapping with a `kind`, which says what else it may hold.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pretrain.errors import ConfigError, nearest

CLASS_PATH = "class_path"  # the kind of a callback or logger whose class the user names


@dataclass(frozen=True)
class Section:
    """A mapping of named entries, and what its error messages propose."""

    key: str  # its full name, such as data.sources
    group: str  # of the registry, whose kinds the entries have
    presets: str  # the choice of presets that fills it
    noun: str  # of an entry
    name: str  # a name that fits
    entry: str  # an entry that fits, on one line
    kind: str  # a kind that fits


SOURCES = Section(
    "data.sources", "data", "data=mixture", "source", "novels", "{kind: text_files, path: novels.txt, weight: 1}",
    "text_files",
)  # fmt: skip
CALLBACKS = Section(
    "callbacks", "callback", "callbacks", "callback", "mine", "{kind: early_stopping, patience: 3}", "early_stopping"
)
CORPUS_SOURCES = Section(
    "sources",
    "corpus_source",
    "sources",
    "source",
    "web",
    "{kind: jsonl, path: pages.jsonl, license: unknown}",
    "jsonl",
)
LOGGERS = Section("loggers", "logger", "logger", "logger", "mine", "{kind: tensorboard}", "tensorboard")
STAGES = "stages"  # a section whose entries hold settings of the run itself: config/stages.py
GROUPS = "optimizer.groups"  # a section whose entries are no settings with a kind: optim/config.py
THRESHOLDS = "language.thresholds"  # a section of a curation whose entries are plain mappings, too
SECTIONS = {section.key: section for section in (SOURCES, CALLBACKS, LOGGERS, CORPUS_SOURCES)}


def section_of(key: str) -> str | None:
    """Return the section that a setting lies in, or is; None for a setting with a name of ours."""
    return next((name for name in (*SECTIONS, STAGES, GROUPS, THRESHOLDS) if f"{key}.".startswith(f"{name}.")), None)


def typed_entries(section: Section, written: Mapping[str, Any], kinds: Mapping[str, type]) -> dict[str, Any]:
    """Return the settings of each entry, in the order of their names; `kinds` are the classes of a registry's group.

    An entry without a kind is of the kind that its name is, or names a class by `class_path`. `false` and null leave an
    entry out, `true` is one with its kind's defaults. Settings that are typed already stay as they are. Raises
    ConfigError for a name, key or value that does not fit.
    """
    typed = {}
    for name in sorted(written):
        entry = written[name]
        if entry is None or entry is False:
            continue
        typed[name] = entry if isinstance(entry, tuple(kinds.values())) else _typed(section, name, entry, kinds)
    return typed


def _typed(section: Section, name: str, entry: Any, kinds: Mapping[str, type]) -> Any:
    key = f"{section.key}.{name}"
    settings = _of_target(mapping_of(section, name, {} if entry is True else entry))
    kind = settings.get("kind")
    if kind is None and CLASS_PATH in settings:
        kind = CLASS_PATH
    elif kind is None and name in kinds:
        kind = name
    tree = OmegaConf.structured(class_of(section, f"{key}.kind", kind, kinds))
    own = [each.name for each in fields(kinds[str(kind)]) if each.name != "kind"]
    fill(key, {name: value for name, value in settings.items() if name != "kind"}, dict.fromkeys(own, tree))
    with named(section, name):
        return OmegaConf.to_object(tree)


def _of_target(settings: dict[str, Any]) -> dict[str, Any]:
    """Return an entry in Hydra's words, `_target_` with its arguments beside it, in those of `class_path`."""
    if "_target_" not in settings:
        return settings
    args = {name: value for name, value in settings.items() if name not in ("_target_", "kind")}
    return {CLASS_PATH: settings["_target_"], "init_args": args}


def mapping_of(section: Section, name: str, entry: Any) -> dict[str, Any]:
    """Return an entry as the mapping that it must be; raises ConfigError for another value, and for a wrong name."""
    key = f"{section.key}.{name}"
    if not re.fullmatch("[A-Za-z0-9_-]+", str(name)):
        raise ConfigError(
            f"{key} is not a name for a {section.noun}: letters (a-z, A-Z), digits, _ and - only. "
            f"Try {section.key}.{re.sub('[^A-Za-z0-9_-]+', '_', str(name)) or section.name}."
        )
    if not isinstance(entry, dict):
        raise ConfigError(f"{key}={entry} is not a mapping of settings. Try '{key}={section.entry}'.")
    return entry


def class_of(section: Section, key: str, kind: Any, kinds: Mapping[str, type]) -> type:
    """Return the class of a kind; raises ConfigError where it is missing or unknown, `key` is its full name."""
    if kind is None:
        raise ConfigError(f"{key} has no value, and needs one: {', '.join(sorted(kinds))}. Try {key}={section.kind}.")
    found = kinds.get(str(kind))
    if found is None:
        raise ConfigError(f"{key}={kind} is unknown. {nearest(str(kind), kinds)}")
    return found


def fill(key: str, settings: Mapping[str, Any], nodes: Mapping[str, Any]) -> None:
    """Write an entry's settings into `nodes`: the node of each setting that it may have, by the setting's name.

    Raises ConfigError for a setting that is not among them, a value of the wrong type, and a value that is missing.
    """
    for setting, value in settings.items():
        if setting not in nodes:
            known = [f"{key}.{name}" for name in nodes]
            raise ConfigError(f"{key}.{setting} is not a setting. {nearest(f'{key}.{setting}', known)}")
        if "${" in str(value):
            raise ConfigError(f"{key}.{setting}={value} refers to something else. Write the value itself.")
        try:
            nodes[setting][setting] = value
        except OmegaConfBaseException as error:
            reason = str(error).splitlines()[0].replace("'text.", f"'{key}.")
            raise ConfigError(f"{key}.{setting}={value} does not fit: {reason}") from error
    for setting, node in nodes.items():
        if OmegaConf.is_missing(node, setting):
            raise ConfigError(f"{key}.{setting} has no value, and needs one. Give it as {key}.{setting}=...")


@contextmanager
def named(section: Section, name: str) -> Iterator[None]:
    """Have errors name an entry's settings as a user writes them, with the name of the entry."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(str(error).replace(f"{section.key}.<name>.", f"{section.key}.{name}.")) from error
