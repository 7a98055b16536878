"""Settings of a checkpoint, relative paths resolved from the folder in which the run was started."""

import glob
import os
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from pretrain.checkpoint.read import Checkpoint
from pretrain.config.run import RunConfig
from pretrain.evaluation.config import FROM_FILES, Task

_FILE_SETTINGS = ("path", "validation_path", "chat_template")


def settings_of(
    checkpoint: Checkpoint, report: Callable[[str], None] = lambda text: None, *, whole_run: bool = False
) -> RunConfig:
    """Return the settings with which a checkpoint was written; `report` gets a line for each path that changes.

    They are those of its stage, or those of the `whole_run` with all stages.

    A relative path of text, tokenizer, chat template or examples becomes absolute if it exists below the folder in
    which the run was started. Raises CheckpointError as `run_config` does.
    """
    config = checkpoint.whole_config() if whole_run else checkpoint.run_config()
    if checkpoint.working_folder is None:
        return config
    home = Path(os.path.normpath((checkpoint.folder.parent.parent / checkpoint.working_folder).absolute()))
    if home == Path.cwd():
        return config
    for key, holder, name in _path_settings(config):
        values = holder if isinstance(holder, list | dict) else vars(holder)
        saved = values[name]
        is_path = saved and not (name == "chat_template" and saved in ("auto", "plain"))
        path = str(home / saved) if is_path and not Path(saved).is_absolute() else ""
        if path and (Path(path).exists() or glob.glob(path)):  # noqa: PTH207  (as text_files reads a pattern)
            values[name] = path
            report(f"  {key}: {saved} is {path}")
    return config


def _path_settings(config: RunConfig) -> Iterator[tuple[str, Any, Any]]:
    """Yield each path setting's full name, the object or list that holds it, and its attribute or index."""
    parts: dict[str, Any] = {"tokenizer": config.tokenizer, **config.data.by_setting()}
    for key, part in parts.items():
        yield from (
            (f"{key}.{name}", part, name) for name in _FILE_SETTINGS if is_dataclass(part) and hasattr(part, name)
        )
    for name, entry in config.stages.items():
        yield from _paths_below(f"stages.{name}.data", entry.get("data"))
    for task in (*FROM_FILES, Task.sts, Task.retrieval, Task.needle):
        files = getattr(config.scores, task.name)
        yield from ((f"scores.{task.name}", files, number) for number in range(len(files)))


def _paths_below(key: str, node: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the path settings in plain data as `_path_settings` does."""
    for name, value in node.items() if isinstance(node, dict) else ():
        if name in _FILE_SETTINGS and isinstance(value, str):
            yield f"{key}.{name}", node, name
        yield from _paths_below(f"{key}.{name}", value)
