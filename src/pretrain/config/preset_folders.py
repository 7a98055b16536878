"""The folders of preset files: ours, and one of the user's own beside it on Hydra's search path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pretrain.config.command_line import refuse_idle_setting
from pretrain.config.registry import registered
from pretrain.config.serialize import flat
from pretrain.errors import ConfigError, nearest, shown

_PACKAGE = Path(__file__).resolve().parents[1]
_IN_A_CLONE = _PACKAGE.parents[1] / "configs"
CONFIG_FOLDER = _IN_A_CLONE if (_IN_A_CLONE / "train.yaml").is_file() else _PACKAGE / "configs"  # in a wheel
_own_folders: list[Path] = []
_primary_config = ["train"]  # that of the program


def use_configs(folder: str | None, config_name: str) -> None:
    """Read presets from a folder of the user's own as well, and settings from the primary config of this name.

    Raises ConfigError if the folder is none.
    """
    _own_folders[:] = []
    _primary_config[:] = [config_name]
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
    raise ConfigError(f"--config-name {config_name} names no file of settings. {nearest(stem, primary_configs())}")


def primary_configs() -> list[str]:
    """Return the names of the primary configs, ours and the user's own."""
    return [path.stem for folder in folders() for path in folder.glob("*.yaml")]


def is_group(name: str) -> bool:
    """Whether `name` chooses a preset (model, trainer, experiment, ...) rather than a value."""
    return any((folder / name.partition("@")[0]).is_dir() for folder in folders())


def presets(group: str) -> list[str]:
    """Return the names of a group's presets: of its files, and of what plugins and scripts registered."""
    ours = {path.stem for path in (CONFIG_FOLDER / group).glob("*.yaml")}
    own = {
        path.relative_to(folder / group).with_suffix("").as_posix()  # such as team/run
        for folder in _own_folders
        for path in (folder / group).rglob("*.yaml")
    }
    return sorted(ours | own | registered(group).keys())


def own_words(config_name: str, overrides: list[str]) -> list[str]:
    """Return what the user's own primary config and experiment set, as overrides in front of the typed ones.

    Presets of ours are left out: what they set was not chosen for this run. Raises ConfigError for a file that cannot
    be read, and for a setting of Hydra's that changes nothing here.
    """
    words = list(_words_of(config_name.removesuffix(".yaml")))
    chosen = [word.partition("=")[2] for word in [*words, *overrides] if word.lstrip("+").startswith("experiment=")]
    return [*words, *(word for name in chosen[-1:] for word in _words_of(f"experiment/{name}")), *overrides]


def begins_with(config_name: str, base: str, above: tuple[str, ...] = ()) -> bool:
    """Return whether a primary config of the user's own begins with the one named `base`, maybe by way of others."""
    name = config_name.removesuffix(".yaml")
    for path in (folder / f"{name}.yaml" for folder in _own_folders):
        entries = (_read(path).get("defaults") or []) if path.is_file() and name not in above else []
        for entry in (each.lstrip("/") for each in entries if isinstance(each, str)):
            if entry == base or (entry != "_self_" and begins_with(entry, base, (*above, name))):
                return True
    return False


def chosen_settings(overrides: list[str]) -> dict[str, str]:
    """Return what the user chose, typed or in configs of their own, by the name of the setting or group."""
    words = own_words(_primary_config[0], overrides)
    return {key.lstrip("+"): value for key, _, value in (word.partition("=") for word in words)}


def _words_of(name: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the values of a YAML file of the user's own and the presets of its defaults list as `key=value`.

    Those of the files that it begins with come first; `above` are the files that begin with it.
    """
    if name in above:
        raise ConfigError(f"{name}.yaml is in the defaults list of a file that is in its own. Leave one of them out.")
    for path in (folder / f"{name}.yaml" for folder in _own_folders):
        if not path.is_file():
            continue
        settings = _read(path)
        words: list[str] = []
        for entry in settings.pop("defaults", None) or []:
            if isinstance(entry, str) and entry not in ("_self_", name):
                yield from _words_of(
                    entry[1:] if entry.startswith("/") else f"{Path(name).parent / entry}", (*above, name)
                )
            for group, preset in entry.items() if isinstance(entry, dict) else ():
                words.append(f"{str(group).removeprefix('override ').lstrip('/')}={preset}")
        for word in [*words, *(f"{key}={shown(value)}" for key, value in flat(settings))]:
            refuse_idle_setting(word)
            yield word


def _read(path: Path) -> dict[Any, Any]:
    """Return what a YAML file of settings holds; raises ConfigError for one that cannot be read."""
    from omegaconf import OmegaConf  # here: most runs have no such file
    from yaml import YAMLError

    try:
        settings: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, ValueError, YAMLError) as error:
        raise unreadable(path, error) from error
    check_content(path, settings)
    return dict(settings)


def unreadable(path: str | Path, error: Exception) -> ConfigError:
    """Return the error of a file that is no YAML, or no text."""
    reason = " ".join(str(error).split())[:300]
    return ConfigError(f"{path} cannot be read: {reason}. It must hold settings as YAML, such as seed: 1.")


def check_content(path: str | Path, content: Any) -> None:
    """Raise ConfigError unless a file holds settings by name, and has a list of the presets that it begins with."""
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a list, and must hold settings, such as seed: 1.")
    defaults = content.get("defaults")
    entries = defaults if isinstance(defaults, list) else [] if defaults is None else [None]
    for each in entries:
        if not isinstance(each, str) and not (isinstance(each, dict) and len(each) == 1):
            wrong = str(defaults if each is None else each)[:80]
            raise ConfigError(
                f"{path} has defaults: {wrong}, which is no list of presets with one group in an entry. Try "
                "defaults: [train, _self_]."
            )


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
    from packaging.version import Version

    at_work, version_base = GlobalHydra.instance().hydra, version.VersionBase.instance()
    base = version_base.getbase()
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
        if isinstance(base, Version):  # which a program of the user's own has set
            version_base.setbase(base)
