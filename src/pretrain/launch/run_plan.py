"""The plan of a run about to happen: settings, folder, and the checkpoint it resumes from."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretrain.checkpoint.read import Checkpoint, newest_save, open_checkpoint, step_folders
from pretrain.config.run import RunConfig
from pretrain.config.serialize import to_dict
from pretrain.errors import CheckpointError
from pretrain.launch.rank import log
from pretrain.launch.resume import as_config, find_resumed, merge, typed_for_the_run
from pretrain.launch.run_folder import check_folder


@dataclass(frozen=True)
class RunPlan:
    """A run about to happen."""

    config: RunConfig
    folder: Path
    resumed: Checkpoint | None
    excluded: frozenset[str] = frozenset()  # rows to blame for a spike, beyond those that the checkpoint knows
    seconds: float | None = None  # of the run so far; none: what the checkpoint says
    typed: list[str] = field(default_factory=list)  # the words of all starts of the run
    after: float = 0.0  # the newest time that a run near by has recorded: this one's are later


def to_record(run_plan: RunPlan) -> dict[str, Any]:
    """Return a placement as plain data, for another process."""
    resumed = str(run_plan.resumed.folder) if run_plan.resumed else None
    return {
        "config": to_dict(run_plan.config), "folder": str(run_plan.folder), "resumed": resumed,
        "typed": run_plan.typed, "after": run_plan.after,
    }  # fmt: skip


def from_record(record: dict[str, Any]) -> RunPlan:
    """Return the placement that `to_record` wrote."""
    resumed = open_checkpoint(Path(record["resumed"])) if record["resumed"] else None
    config, folder = as_config(record["config"]), Path(record["folder"])
    return RunPlan(config, folder, resumed, typed=record["typed"], after=record["after"])


def resolve_run(config: RunConfig, overrides: list[str]) -> RunPlan:
    """Decide folder and settings of a run; `overrides` are the words typed, which win over a resumed run's settings.

    Raises ConfigError where they would change the result of the run resumed, CheckpointError where its folder cannot
    be used.
    """
    resumed = find_resumed(config, overrides) if config.resume else None
    if resumed is not None:
        folder = resumed.folder.parent.parent
        log(f"resuming {folder} at step {resumed.step}", one_line=True)
        merged = merge(config, overrides, resumed)
        typed = typed_for_the_run(overrides, resumed.typed)
        return RunPlan(merged, folder, resumed, typed=typed, after=newest_save(Path(config.paths.logs_dir), folder))
    folder = Path(config.paths.run_dir or _fresh_folder(config))
    if step_folders(folder / "checkpoints") and config.resume is None:
        raise CheckpointError(
            f"paths.run_dir={folder} already holds the checkpoints of a run. "
            "Go on with it by resume=auto, or choose another folder."
        )
    _probe(folder)
    typed, after = typed_for_the_run(overrides, []), newest_save(Path(config.paths.logs_dir), folder)
    return RunPlan(config, folder, None, typed=typed, after=after)


def _fresh_folder(config: RunConfig) -> Path:
    parent = Path(config.paths.logs_dir) / (config.name or "run")
    name = time.strftime("%Y-%m-%d_%H-%M-%S")
    folder, copy = parent / name, 1
    while folder.exists():
        copy += 1
        folder = parent / f"{name}_{copy}"
    return folder


def _probe(folder: Path) -> None:
    """Create the folder and write to it, so that a run that could not save never starts."""
    try:
        check_folder(folder)
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        probe = folder / "checkpoints" / ".probe"
        probe.unlink(missing_ok=True)
        with probe.open("xb") as file:  # never through a link
            file.write(b"\0" * 4096)
        probe.unlink()
    except OSError as error:
        raise CheckpointError(
            f"the run folder {folder} cannot be written: {error}. Try another paths.logs_dir."
        ) from error
