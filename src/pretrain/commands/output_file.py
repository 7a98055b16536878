"""A file that a command writes at its end, checked before its work."""

from pathlib import Path

from pretrain.errors import ConfigError


def check_writable(key: str, path: Path) -> None:
    """Raise ConfigError for a file that cannot be written, which the setting `key` names, before the work."""
    if not path.parent.is_dir():
        raise ConfigError(f"{key}={path}: there is no folder {path.parent}. Try {key}={path.name}.")
    is_new = not path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        raise _unwritable(key, path, error) from None
    if is_new:
        path.unlink()


def write_output(key: str, path: Path, text: str) -> None:
    """Write the file. Raises ConfigError where it cannot be written."""
    try:
        path.write_text(text, encoding="utf8")
    except OSError as error:
        raise _unwritable(key, path, error) from error


def _unwritable(key: str, path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{key}={path} cannot be written: {error.strerror}. Name a new file in a folder of yours: "
        f"{key}={key}{path.suffix}."
    )
