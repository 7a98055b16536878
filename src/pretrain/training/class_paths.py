"""Classes that the user names by their path: what the path may be, and which of them the user's own settings name.

What a saved file names is data. Only paths in the settings that were composed for this start are imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pretrain.errors import ConfigError

_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_SECRET = re.compile(r"(^|_)(api_?key|token|secret|password|passwd|credentials?)$", re.IGNORECASE)
_IN_URL = re.compile(r"://[^/@\s]*:[^/@\s]*@")


def check_class_path(key: str, path: str) -> None:
    """Raise ConfigError where `path` cannot be that of a class."""
    if path != "???" and not _PATH.fullmatch(path):
        raise ConfigError(f"{key}={path} is not the path of a class. Try {key}=my_package.MyClass.")


def check_no_secrets(key: str, value: Any) -> None:
    """Raise ConfigError for a setting that is a secret by its name, or an address with a password in it."""
    if isinstance(value, dict):
        for name, item in value.items():
            if _SECRET.search(str(name)) and item is not None:
                raise ConfigError(
                    f"{key}.{name} looks like a secret, and settings are saved with the run and its model. Leave it "
                    "out, and give it to the library by its environment variable."
                )
            check_no_secrets(f"{key}.{name}", item)
    elif isinstance(value, list):
        for item in value:
            check_no_secrets(key, item)
    elif isinstance(value, str) and _IN_URL.search(value):
        raise ConfigError(
            f"{key} holds an address with a password, and settings are saved with the run and its model. Write the "
            f"address without it, as {key}=https://host, and give the password by the library's environment variable."
        )


def classes_of(callbacks: dict[str, Any], loggers: dict[str, Any]) -> frozenset[str]:
    """Return <entry>=<class path> for each entry that names a class, such as `callbacks.mine=my_package.Mine`."""
    return frozenset(f"{key}={path}" for key, path in class_paths(callbacks, loggers))


def refuse_unnamed(callbacks: dict[str, Any], loggers: dict[str, Any], named: frozenset[str]) -> None:
    """Raise ConfigError for a class path that is not among those that the user's own settings name."""
    for key, path in class_paths(callbacks, loggers):
        check_named(key, path, named)


def check_named(key: str, path: str, named: frozenset[str]) -> None:
    """Raise ConfigError where the class path of the entry `key` is not among `named`."""
    if f"{key}={path}" not in named:
        raise ConfigError(
            f"{key}.class_path={path} is in the saved settings of the run, and what a file names is never imported. "
            f"If you know the class, name it again: {key}.class_path={path}. Otherwise leave it out: {key}=null."
        )


def class_paths(callbacks: dict[str, Any], loggers: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the key and the class path of each entry that names a class."""
    for section, entries in (("callbacks", callbacks), ("loggers", loggers)):
        for name, entry in entries.items():
            if getattr(entry, "class_path", None) is not None:
                yield f"{section}.{name}", entry.class_path
