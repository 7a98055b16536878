"""Settings of a checkpoint, relative paths resolved from the folder in which the run was started."""

import glob
import os
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from pretrain.checkpoint.read import Checkpoint
from pretrain.config.run import RunConfig
from pretrain.evaluation.config import FROM_FILES

_FILE_SETTINGS = ("path", "validation_path")


def settings_of(checkpoint: Checkpoint, report: Callable[[str], None] = lambda text: None) -> RunConfig:
    """Return the settings of the run that wrote a checkpoint; `report` gets a line for each path that changes.

    A relative path of text, tokenizer or examples becomes absolute if it exists below the folder in which the run was
    started. Raises CheckpointError as `run_config` does.
    """
    config = checkpoint.run_config()
    if checkpoint.working_folder is None:
        return config
    home = Path(os.path.normpath((checkpoint.folder.parent.parent / checkpoint.working_folder).absolute()))
    if home == Path.cwd():
        return config
    for key, holder, name in _path_settings(config):
        values = holder if isinstance(holder, list) else vars(holder)
        saved = values[name]
        path = str(home / saved) if saved and not Path(saved).is_absolute() else ""
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
    for task in FROM_FILES:
        files = getattr(config.scores, task.name)
        yield from ((f"scores.{task.name}", files, number) for number in range(len(files)))
