"""The folders of preset files: ours, and one of the user's own beside it on Hydra's search path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pretrain.config.registry import registered
from pretrain.errors import ConfigError, nearest

CONFIG_FOLDER = Path(__file__).resolve().parents[3] / "configs"
_own_folders: list[Path] = []


def use_config_dir(folder: str | None) -> None:
    """Read presets from a folder of the user's own as well; raises ConfigError if it is none."""
    _own_folders[:] = []
    if folder is not None:
        path = Path(folder).expanduser().absolute()
        if not path.is_dir():
            raise ConfigError(f"--config-dir {folder} is no folder. Name one that holds YAML files of your own.")
        _own_folders.append(path)


def folders() -> list[Path]:
    """Return the folders of presets in the order in which Hydra looks for a file."""
    return [CONFIG_FOLDER, *_own_folders]


def config_file(config_name: str) -> Path:
    """Return the file of a primary config, ours or the user's own; raises ConfigError where there is none."""
    stem = config_name.removesuffix(".yaml")
    for folder in folders():
        if (folder / f"{stem}.yaml").is_file():
            return folder / f"{stem}.yaml"
    found = [path.stem for folder in folders() for path in folder.glob("*.yaml")]
    raise ConfigError(f"--config-name {config_name} names no file of settings. {nearest(stem, found)}")


def is_group(name: str) -> bool:
    """Whether `name` chooses a preset (model, trainer, experiment, ...) rather than a value."""
    return any((folder / name.partition("@")[0]).is_dir() for folder in folders())


def presets(group: str) -> list[str]:
    """Return the names of a group's presets: of its files, and of what plugins and scripts registered."""
    files = (path for folder in folders() for path in (folder / group).glob("*.yaml"))
    return sorted({path.stem for path in files} | registered(group).keys())


@contextmanager
def hydra_reads_presets() -> Iterator[None]:
    """Let `hydra.compose` read these folders; a Hydra that is at work goes on with its own search path afterwards."""
    from hydra import version
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.config_search_path import SearchPathQuery
    from hydra.core.global_hydra import GlobalHydra

    at_work = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    version.setbase("1.3")
    search_path = create_config_search_path(str(CONFIG_FOLDER))
    for folder in _own_folders:  # where Hydra's --config-dir has it
        search_path.prepend(provider="command-line", path=f"file://{folder}", anchor=SearchPathQuery(provider="schema"))
    Hydra.create_main_hydra2(task_name="pretrain", config_search_path=search_path)
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = at_work
