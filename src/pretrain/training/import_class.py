"""An object of a class that the user names by its path. Only a process that trains comes here."""

from __future__ import annotations

from typing import Any

from pretrain.config.registry import import_named
from pretrain.errors import ConfigError, PretrainError, printable
from pretrain.training.class_paths import check_named, class_paths


def check_importable(callbacks: dict[str, Any], loggers: dict[str, Any], named: frozenset[str]) -> None:
    """Raise ConfigError for a class that cannot be imported, before a run reads its data."""
    for key, path in class_paths(callbacks, loggers):
        _imported(key, path, named)


def instance_of_class(key: str, entry: Any, named: frozenset[str]) -> Any:
    """Return an object of the class at `entry.class_path`, made with `entry.init_args`.

    `key` is the full name of the entry. Raises ConfigError for a path that is not among those `named` by the user's own
    settings, is no subclass of Lightning's Callback or Logger, or refuses its arguments.
    """
    from lightning.pytorch import callbacks, loggers  # here: a class that is missing is found without it

    path, args = entry.class_path, entry.init_args
    base = {"callbacks": callbacks.Callback, "loggers": loggers.Logger}[key.partition(".")[0]]
    found = _imported(key, path, named)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(
            f"{key}.class_path={path} is no subclass of Lightning's {base.__name__}. "
            f"Try a class of your own: class Mine(lightning.pytorch.{base.__module__.split('.')[-2]}.{base.__name__})."
        )
    try:
        return found(**args)
    except PretrainError:
        raise
    except Exception as error:  # of a class of the user's
        raise ConfigError(
            f"{key}.init_args={args} does not fit {path}: {_reason(error)}. Try {key}.init_args={{}}, or the names "
            "that the class takes."
        ) from error


def _imported(key: str, path: str, named: frozenset[str]) -> Any:
    check_named(key, path, named)
    module_name, _, name = path.rpartition(".")
    try:
        return getattr(import_named(module_name), name)
    except Exception as error:  # of a module of the user's
        raise ConfigError(
            f"{key}.class_path={path} cannot be imported: {_reason(error)}. Install its package, or start in the "
            "folder in which it lies."
        ) from error


def _reason(error: Exception) -> str:
    return printable(f"{type(error).__name__}: {error}", one_line=True)
