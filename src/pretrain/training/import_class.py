"""An object of a class that the user names by its path. Only a process that trains comes here."""

from typing import Any

from lightning.pytorch import callbacks, loggers

from pretrain.errors import ConfigError, PretrainError
from pretrain.training.class_paths import imported, reason_of

_BASES = {"callbacks": callbacks.Callback, "loggers": loggers.Logger}  # by the section of the settings


def instance_of_class(key: str, entry: Any, named: frozenset[str]) -> Any:
    """Return an object of the class at `entry.class_path`, made with `entry.init_args`.

    `key` is the full name of the entry. Raises ConfigError for a path that is not among those `named` by the user's own
    settings, is no subclass of Lightning's Callback or Logger, or refuses its arguments.
    """
    path, args = entry.class_path, entry.init_args
    base = _BASES[key.partition(".")[0]]
    found = imported(key, path, named)
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
            f"{key}.init_args={args} does not fit {path}: {reason_of(error)}. Try {key}.init_args={{}}, or the names "
            "that the class takes."
        ) from error
