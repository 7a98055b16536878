"""The plan of a run: resolved settings, run folder, and the checkpoint it resumes from."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from pretrain.checkpoint.read import Checkpoint, newest_save, open_checkpoint, step_folders
from pretrain.checkpoint.upload import Uploads
from pretrain.config.registry import load_plugins
from pretrain.config.run import RunConfig
from pretrain.config.serialize import to_dict
from pretrain.config.stages import check_course, stage_texts
from pretrain.data.config import DataConfig
from pretrain.data.prepare import prepare
from pretrain.errors import CheckpointError
from pretrain.launch.branch import branched, copy_base, is_begun, open_base
from pretrain.launch.rank import log
from pretrain.launch.remote_runs import check_destination, destination
from pretrain.launch.resume import as_config, find_resumed, merge, overrides_of_the_run
from pretrain.launch.run_folder import CHECKPOINTS, LOCK, check_folder
from pretrain.training.class_paths import classes_of, refuse_unnamed


@dataclass(frozen=True)
class RunPlan:
    """A run about to start."""

    config: RunConfig  # of the whole run; in a stage, those of the stage
    folder: Path
    resumed: Checkpoint | None
    excluded: frozenset[str] = frozenset()  # ids of outlier sequences, beyond those in the checkpoint
    seconds: float | None = None  # training time so far; None: as in the checkpoint
    typed: list[str] = field(default_factory=list)  # command-line overrides of all starts of the run
    classes: frozenset[str] = frozenset()  # <entry>=<class path>, as named by the settings composed for this start
    after: float = 0.0  # Unix time of the newest save in logs_dir; this run's saves get later ones
    whole: RunConfig | None = None  # settings of the whole run, where `config` has those of a stage
    goes_on: bool = False  # with its next stage, in a process that has trained the one before
    remote: str | None = None  # address of the run's copy in an object storage
    uploads: Uploads | None = None  # what copies it, in the process of rank 0

    @property
    def start(self) -> int:
        """The step that the run starts from."""
        return self.resumed.step if self.resumed else 0

    @property
    def of_the_run(self) -> RunConfig:
        """The settings of the whole run, its stages among them."""
        return self.whole or self.config

    @property
    def is_fresh(self) -> bool:
        """Whether the run starts in a folder that was made for it."""
        return self.resumed is None and not self.config.paths.run_dir


def to_record(run_plan: RunPlan) -> dict[str, Any]:
    """Return a run plan as plain data, for another process."""
    resumed = str(run_plan.resumed.folder) if run_plan.resumed else None
    return {
        "config": to_dict(run_plan.config), "folder": str(run_plan.folder), "resumed": resumed,
        "typed": run_plan.typed, "classes": sorted(run_plan.classes), "after": run_plan.after,
        "remote": run_plan.remote,
    }  # fmt: skip


def from_record(record: dict[str, Any]) -> RunPlan:
    """Return the run plan that `to_record` wrote in another process of this start, with its plug-ins loaded."""
    load_plugins(record["config"]["plugins"])  # what the user typed: `merge` keeps none of a saved run
    resumed = open_checkpoint(Path(record["resumed"])) if record["resumed"] else None
    config, folder = as_config(record["config"]), Path(record["folder"])
    classes = frozenset(record["classes"])
    typed, after, remote = record["typed"], record["after"], record["remote"]
    return RunPlan(config, folder, resumed, typed=typed, classes=classes, after=after, remote=remote)


def resolve_run(config: RunConfig, overrides: list[str]) -> RunPlan:
    """Return folder and settings of a run; command-line `overrides` win over the settings of a resumed run.

    Raises ConfigError for overrides that would change the result of the resumed run and for a class that only the
    resumed run names, CheckpointError for a folder that cannot be used.
    """
    classes, started = classes_of(config.callbacks, config.loggers), config
    check_destination(config)
    resumed = find_resumed(config, overrides) if config.resume else None
    if config.branch and (resumed is None or not is_begun(resumed)):
        base, typed_config = open_base(config, resumed), config
        config = branched(config, overrides, base)
        folder = resumed.folder.parent.parent if resumed else _new_folder(typed_config)
        resumed = resumed or copy_base(base, folder)
        refuse_unnamed(config.callbacks, config.loggers, classes)
    elif resumed is not None:
        folder = resumed.folder.parent.parent
        log(f"resuming {folder} at step {resumed.step}", one_line=True)
        config = merge(config, overrides, resumed)
        refuse_unnamed(config.callbacks, config.loggers, classes)
    else:
        check_course(config)
        folder = _new_folder(config)
    typed = overrides_of_the_run(overrides, resumed.typed if resumed else [])
    after = newest_save(Path(config.paths.logs_dir), folder)
    remote = destination(started, folder)
    if remote is not None:
        log(f"copying {folder} to {remote}", one_line=True)
    return RunPlan(config, folder, resumed, typed=typed, classes=classes, after=after, remote=remote)


def prepare_text(config: RunConfig) -> None:
    """Prepare the text of a run and of all its stages, so that none of it fails after hours; errors as `prepare`."""
    for text in texts_of(config):
        prepare(text, config.tokenizer, Path(config.paths.cache_dir), log, config.data)


def texts_of(config: RunConfig) -> list[DataConfig]:
    """Return the settings of the text of a run, and those of each stage that reads another text."""
    return [config.data, *stage_texts(config)]


def _new_folder(config: RunConfig) -> Path:
    """Return the folder of a new run, which can be written; raises CheckpointError where it holds another run."""
    folder = Path(config.paths.run_dir or _fresh_folder(config))
    if step_folders(folder / CHECKPOINTS) and config.resume is None:
        raise CheckpointError(
            f"paths.run_dir={folder} already holds the checkpoints of a run. "
            "Continue it with resume=auto, or choose another folder."
        )
    _check_writable(folder)
    return folder


def _fresh_folder(config: RunConfig) -> Path:
    """Create and return a folder that no other run has: two that start in the same second get two."""
    parent = Path(config.paths.logs_dir) / (config.name or "run")
    name = time.strftime("%Y-%m-%d_%H-%M-%S")
    for copy in count(1):
        folder = parent / (f"{name}_{copy}" if copy > 1 else name)
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            if not (isinstance(error, FileExistsError) and folder.exists()):
                raise _not_writable(folder, error) from error
        else:
            break
    return folder


@contextmanager
def unused_folder_removed(run_plan: RunPlan) -> Iterator[None]:
    """Remove the folder of a new run that ends with an error before it has written anything."""
    try:
        yield
    except BaseException:
        if run_plan.is_fresh:
            with suppress(OSError):  # one that is not empty stays
                (run_plan.folder / CHECKPOINTS).rmdir()
                if [path.name for path in run_plan.folder.iterdir()] == [LOCK]:
                    (run_plan.folder / LOCK).unlink()
                run_plan.folder.rmdir()
        raise


def _check_writable(folder: Path) -> None:
    """Create the folder and write a file to it, so that a run that could not save never starts."""
    try:
        check_folder(folder)
        (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        probe = folder / CHECKPOINTS / ".probe"
        probe.unlink(missing_ok=True)
        with probe.open("xb") as file:  # never through a link
            file.write(b"\0" * 4096)
        probe.unlink()
    except OSError as error:
        raise _not_writable(folder, error) from error


def _not_writable(folder: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"the run folder {folder} cannot be written: {error}. Try another paths.logs_dir.")
