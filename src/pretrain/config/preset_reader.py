"""How Hydra reads preset files: their whole numbers written out, and a file that holds no settings named."""

from typing import Any

from pretrain.config.preset_folders import check_content, unreadable
from pretrain.config.whole_numbers import with_whole_numbers

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
