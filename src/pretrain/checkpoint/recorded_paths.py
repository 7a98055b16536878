"""Settings of a checkpoint with relative paths resolved from the folder where the run was started."""

import glob
import os
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from pretrain.checkpoint.read import Checkpoint
from pretrain.config.run import RunConfig
from pretrain.data.config import MixtureConfig
from pretrain.evaluation.config import FROM_FILES

_PLACES = ("path", "validation_path")


def settings_of(checkpoint: Checkpoint, report: Callable[[str], None] = lambda text: None) -> RunConfig:
    """Return the settings of the run that wrote a checkpoint; `report` gets a line for each path that changes.

    A relative path of text, tokenizer or examples starts from the folder where the run was started: if it exists there,
    it becomes absolute; else it stays. Raises CheckpointError as `run_config` does.
    """
    config = checkpoint.run_config()
    if checkpoint.working_folder is None:
        return config
    home = Path(os.path.normpath((checkpoint.folder.parent.parent / checkpoint.working_folder).absolute()))
    if home == Path.cwd():
        return config
    for key, holder, name in _path_settings(config):
        typed = holder[name] if isinstance(holder, list) else getattr(holder, name)
        place = str(home / typed) if typed and not Path(typed).is_absolute() else ""
        if place and (Path(place).exists() or glob.glob(place)):  # noqa: PTH207  (as text_files reads a pattern)
            _assign(holder, name, place)
            report(f"  {key}: {typed} is {place}")
    return config


def _assign(holder: Any, name: Any, value: str) -> None:
    if isinstance(holder, list):
        holder[name] = value
    else:
        setattr(holder, name, value)


def _path_settings(config: RunConfig) -> Iterator[tuple[str, Any, Any]]:
    """Yield the full name of each setting that names files, the object or list that holds it, and its place there."""
    parts: dict[str, Any] = {"data": config.data, "tokenizer": config.tokenizer}
    if isinstance(config.data, MixtureConfig):
        parts |= {f"data.sources.{name}": source.text for name, source in config.data.sources.items()}
    for key, part in parts.items():
        yield from ((f"{key}.{name}", part, name) for name in _PLACES if is_dataclass(part) and hasattr(part, name))
    for task in FROM_FILES:
        files = getattr(config.scores, task.name)
        yield from ((f"scores.{task.name}", files, number) for number in range(len(files)))
