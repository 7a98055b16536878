"""The project in the working folder: its file pretrain.yaml says which configs of the user's own a command reads.

Commands that use a trained model never read it: their folder may be one that somebody else has made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pretrain.config.command_line import CommandLine
from pretrain.config.overrides import in_home
from pretrain.errors import ConfigError, nearest, show

FILE = "pretrain.yaml"
_FOLDER = "config_dir"
_COMMANDS = (
    "train",
    "curate",
    "prepare",
    "plan",
    "scale",
    "doctor",
)  # their names are keys too: each gives a primary config
_OF_A_RUN = ("plan", "scale", "doctor")  # read that of train where the file gives them none


def use_project(command: str, given: CommandLine) -> None:
    """Add the flags that the project's file gives to those typed, and print which config is read.

    A typed --config-dir leaves the file unread, a typed --config-name only the name in it. Raises ConfigError for a
    file that cannot be read and for a key that it cannot have.
    """
    if command not in _COMMANDS or given.config_dir is not None or not Path(FILE).is_file():
        return
    project = _read(Path(FILE))
    given.config_dir = in_home(project.get(_FOLDER, "."))
    given.flags += ["--config-dir", given.config_dir]
    name = project.get(command, project.get("train") if command in _OF_A_RUN else None)
    if given.config_name is None and name is not None:
        given.config_name = name
        given.flags += ["--config-name", given.config_name]
    if not (given.help or given.shows or given.completes):
        file = Path(given.config_dir) / f"{(given.config_name or command).removesuffix('.yaml')}.yaml"
        show(f"{FILE}: reads {file if file.is_file() else f'the presets in {file.parent}'}", one_line=True)


def _read(path: Path) -> dict[str, str]:
    from yaml import YAMLError, safe_load  # here: most folders have no such file

    try:
        project: Any = safe_load(path.read_text(encoding="utf8"))
    except (OSError, ValueError, YAMLError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{path} cannot be read: {reason}. It must hold lines such as train: my_run.") from error
    if not isinstance(project, dict):
        raise ConfigError(f"{path} holds {type(project).__name__}, and must hold lines such as train: my_run.")
    for key, value in project.items():
        if key not in (_FOLDER, *_COMMANDS):
            raise ConfigError(f"{key} in {path} is nothing it can say. {nearest(str(key), (_FOLDER, *_COMMANDS))}")
        if not isinstance(value, str):
            raise ConfigError(f"{key}: {value} in {path} is not a name. Write {key}: {_example(key)}.")
    return project


def _example(key: str) -> str:
    return "configs" if key == _FOLDER else f"my_{key}"
