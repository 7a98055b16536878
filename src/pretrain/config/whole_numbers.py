"""Whole numbers written with an exponent, as 1e9: wherever a setting is declared as one, such a value is one."""

import re
from decimal import Decimal, InvalidOperation
from typing import Any

from pretrain.config.declared import types_of

_WITH_EXPONENT = re.compile(r"\s*[+-]?[\d_.]+[eE]\+?\d{1,2}\s*")


def is_whole(config_class: type, key: str) -> bool:
    """Whether a setting is declared as a whole number, and in no kind of its group as any number."""
    kinds = types_of(config_class, key)
    return int in kinds and float not in kinds


def _lists_whole(config_class: type, key: str) -> bool:
    """Whether a setting is declared as a list of whole numbers."""
    return any(kind == list[int] for kind in types_of(config_class, key))


def written_out(text: str) -> str:
    """Return 1e9 as 1000000000, anything else as it is."""
    number = _whole(text.strip().replace("_", "")) if _WITH_EXPONENT.fullmatch(text) else None
    return text if number is None else str(number)


def with_whole_numbers(tree: dict[Any, Any], config_class: type, prefix: str = "") -> dict[Any, Any]:
    """Return the settings of a YAML file, where 1e9 is a float or a text, with a whole number where one is asked for.

    `prefix` comes before the names: "model." for a file of that group alone. What is no whole number stays as it is:
    whoever checks its type refuses it.
    """
    return {name: _read(value, config_class, f"{prefix}{name}") for name, value in tree.items()}


_GLOBAL = "_global_"  # the package of a file that sets anything, as an experiment does


_reads_for: list[type] = []  # the dataclass that declares the settings of the script, last


def read_presets_for(config_class: type) -> None:
    """Have Hydra read preset files with `with_whole_numbers`, as settings of a script that this dataclass declares.

    The method of Hydra's own reader is replaced, and not its class: launchers send that to other processes by name.
    """
    from hydra._internal.core_plugins.file_config_source import FileConfigSource  # here: launch reads settings without
    from hydra.plugins.config_source import ConfigResult
    from omegaconf import OmegaConf
    from yaml import YAMLError

    from pretrain.config.preset_folders import check_content, unreadable

    _reads_for[:] = [config_class]
    read = FileConfigSource.load_config
    if read.__module__ == __name__:
        return

    def load_config(self: Any, config_path: str) -> ConfigResult:
        """Return what a file holds, its whole numbers written out; raises ConfigError where it holds no settings."""
        path = f"{self.path}/{config_path.removesuffix('.yaml')}.yaml"
        try:
            found = read(self, config_path)
        except (YAMLError, UnicodeDecodeError) as error:
            raise unreadable(path, error) from error
        package = found.header.get("package") or config_path.rpartition("/")[0].replace("/", ".")
        prefix = "" if package in ("", _GLOBAL) else f"{package}."
        plain = OmegaConf.to_container(found.config, resolve=False)
        check_content(path, plain)
        if isinstance(plain, dict):
            whole = with_whole_numbers(plain, _reads_for[-1], prefix)
            if whole != plain or repr(whole) != repr(plain):  # 2.0 == 2
                found.config = OmegaConf.create(whole)
        return found

    FileConfigSource.load_config = load_config


def _read(value: Any, config_class: type, key: str) -> Any:
    if isinstance(value, dict):
        return with_whole_numbers(value, config_class, f"{key}.")
    if isinstance(value, list) and _lists_whole(config_class, key):
        return [_as_whole(item) for item in value]
    return _as_whole(value) if isinstance(value, str | float) and is_whole(config_class, key) else value


def _as_whole(value: Any) -> Any:
    """Return the whole number that a value stands for; any other value as it is."""
    if isinstance(value, str):
        return written_out(value)
    if isinstance(value, float):
        number = _whole(repr(value))  # the digits that were written, where a float has no room for all of the number's
        return value if number is None else number
    return value


def _whole(digits: str) -> int | None:
    """Return the whole number that digits and an exponent stand for; None where they stand for none."""
    try:
        number = Decimal(digits)
        return int(number) if number.is_finite() and number.adjusted() < 100 and number == int(number) else None
    except InvalidOperation:
        return None
