"""How Hydra reads preset files: as ever, but for whole numbers, which may be written 1e9 as on the command line."""

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from omegaconf import OmegaConf

from pretrain.config.whole_numbers import with_whole_numbers

_GLOBAL = "_global_"  # the package of a file that sets anything, as an experiment does


def read_presets_for(config_class: type) -> None:
    """Have Hydra read preset files as settings of a script, which this dataclass declares."""

    class PresetFiles(FileConfigSource):
        """Reads the files of the configuration folder."""

        def load_config(self, config_path: str) -> ConfigResult:
            """Return what a file holds, its whole numbers written out."""
            found = super().load_config(config_path)
            package = found.header.get("package") or config_path.rpartition("/")[0].replace("/", ".")
            prefix = "" if package in ("", _GLOBAL) else f"{package}."
            plain = OmegaConf.to_container(found.config, resolve=False)
            if isinstance(plain, dict):
                whole = with_whole_numbers(plain, config_class, prefix)
                if whole != plain or repr(whole) != repr(plain):  # 2.0 == 2
                    found.config = OmegaConf.create(whole)
            return found

    Plugins.instance()  # registers Hydra's own reader first
    SourcesRegistry.instance().types["file"] = PresetFiles
