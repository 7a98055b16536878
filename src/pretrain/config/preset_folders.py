"""The folders of preset files: ours, and one of the user's own beside it on Hydra's search path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from pretrain.config.registry import registered
from pretrain.errors import ConfigError, nearest, shown

_PACKAGE = Path(__file__).resolve().parents[1]
_IN_A_CLONE = _PACKAGE.parents[1] / "configs"
CONFIG_FOLDER = _IN_A_CLONE if (_IN_A_CLONE / "train.yaml").is_file() else _PACKAGE / "configs"  # in a wheel
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


def own_words(config_name: str, overrides: list[str]) -> list[str]:
    """Return what the user's own primary config and experiment set, as overrides in front of the typed ones.

    Presets of ours are left out: what they set was not chosen for this run.
    """
    chosen = [word.partition("=")[2] for word in overrides if word.lstrip("+").startswith("experiment=")]
    names = [config_name.removesuffix(".yaml"), *(f"experiment/{name}" for name in chosen)]
    return [word for folder in _own_folders for name in names for word in _words_of(folder, name, ())] + overrides


def _words_of(folder: Path, name: str, above: tuple[str, ...]) -> Iterator[str]:
    """Yield the values of a config as `key=value`, behind the presets and the values of configs in its defaults list.

    `above` are the configs that name it; without a file in the folder it yields nothing.
    """
    path = folder / f"{name}.yaml"
    if name in above or not path.is_file():
        return
    settings = _read(path)
    for entry in settings.pop("defaults", None) or []:
        if isinstance(entry, str):
            beside = PurePosixPath(name).parent
            yield from _words_of(folder, entry[1:] if entry.startswith("/") else str(beside / entry), (*above, name))
        for group, chosen in entry.items() if isinstance(entry, dict) else ():
            yield f"{str(group).removeprefix('override ').lstrip('/')}={chosen}"
    yield from _flat(settings, "")


def _read(path: Path) -> dict[Any, Any]:
    from omegaconf import OmegaConf  # here: most runs have no such file
    from yaml import YAMLError

    try:
        settings = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, ValueError, YAMLError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{path} cannot be read: {reason}. It must hold settings as YAML, such as seed: 1."
        ) from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} holds a list, and must hold settings, such as seed: 1.")
    return settings


def _flat(settings: dict[Any, Any], prefix: str) -> Iterator[str]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}={shown(value)}"


def named_plugins(words: list[str]) -> list[str]:
    """Return the modules that `plugins=[...]` names, on the command line or in the user's own config; the last wins."""
    values = [word.partition("=")[2] for word in words if word.lstrip("+").partition("=")[0] == "plugins"]
    return [name.strip(" '\"") for name in values[-1].strip("[] ").split(",") if name.strip()] if values else []


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
