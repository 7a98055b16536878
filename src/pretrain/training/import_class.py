"""An object of a class that the user names by its path. Only a process that trains comes here."""

from importlib import import_module
from typing import Any

from lightning.pytorch import callbacks, loggers

from pretrain.config.registry import search_working_folder
from pretrain.errors import ConfigError
from pretrain.training.class_paths import check_named

_BASES = {"Callback": callbacks.Callback, "Logger": loggers.Logger}


def instance_of_class(key: str, entry: Any, named: frozenset[str], base: str) -> Any:
    """Return an object of the class at `entry.class_path`, made with `entry.init_args`.

    `key` is the full name of the entry. Raises ConfigError for a path that is not among those `named` by the user's own
    settings, is no subclass of Lightning's `base`, or refuses its arguments.
    """
    path, args = entry.class_path, entry.init_args
    check_named(key, path, named)
    module_name, _, name = path.rpartition(".")
    search_working_folder()
    try:
        found = getattr(import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{key}.class_path={path} cannot be imported: {error}. Is its package installed, its folder in "
            "PYTHONPATH, or the run started there?"
        ) from error
    if not (isinstance(found, type) and issubclass(found, _BASES[base])):
        raise ConfigError(
            f"{key}.class_path={path} is no subclass of Lightning's {base}. "
            f"Try a class of your own: class Mine(lightning.pytorch.{_BASES[base].__module__.split('.')[-2]}.{base})."
        )
    try:
        return found(**args)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{key}.init_args={args} does not fit {path}: {error}. Try {key}.init_args={{}}, or the names that the "
            "class takes."
        ) from error
