"""Runs whose copy is in an object storage: where it is, and how a machine that lacks the run folder gets it back."""

import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path

from pretrain.checkpoint.read import run_meant_by_auto, saved_at, step_folders
from pretrain.checkpoint.remote import RemoteRun, fetch, fetch_newest, newest_run, runs_below, split_step
from pretrain.checkpoint.upload import check_writable
from pretrain.config.run import RunConfig
from pretrain.errors import CheckpointError
from pretrain.files.object_storage import RemoteFolder, check_address, is_remote
from pretrain.launch.rank import log
from pretrain.launch.run_folder import (
    CHECKPOINTS,
    CONFIG,
    HISTORY,
    LEDGER,
    LOG,
    PAGE,
    REPORT,
    SAMPLES,
    TABLE,
    check_folder,
)
from pretrain.launch.run_lock import only_run_in
from pretrain.training.config import PathsConfig, StorageConfig

FILES = (CONFIG, REPORT, TABLE, LEDGER, HISTORY, SAMPLES, PAGE, LOG)  # copied with each checkpoint

_FIGURES = {*FILES, "sweep.json", "manifest.json"}  # what reports and comparisons read
_DEEPEST = 4  # folders above such a file: of a folder of runs, <run>/<time>/checkpoints/step-<n>


def destination(config: RunConfig, folder: Path) -> str | None:
    """Return the address of the copy of a run in `folder`; None if it has none.

    It is below `storage.url` as the run is below `paths.logs_dir`. A run that is resumed from a storage goes on where
    it is, if that is below `storage.url` or there is none.
    """
    url = config.storage.url
    if config.resume and is_remote(config.resume):
        resumed = newest_run(split_step(config.resume)[0], config.storage.retry_s).folder.url
        if url is None or _path_below(resumed, url) is not None:
            return resumed
    return None if url is None else f"{url.rstrip('/')}/{_path_of_copy(folder, config.paths.logs_dir)}"


def check_destination(config: RunConfig) -> None:
    """Raise CheckpointError, before anything is written, if the storage of a run's copy cannot be written to."""
    for url in (config.storage.url, config.resume):
        if url and is_remote(url):
            check_address("storage.url" if url == config.storage.url else "resume", url)
            check_writable(RemoteFolder(split_step(url)[0], config.storage.retry_s))
            return


def local_run(resume: str, paths: PathsConfig, storage: StorageConfig) -> Path:
    """Return the run or checkpoint to resume: `resume` itself, or, of an address, the run folder with its copy.

    A checkpoint of the folder that is newer than those in the storage is kept, and the run goes on from there, unless
    `resume` is the address of a checkpoint. Raises CheckpointError.
    """
    if not is_remote(resume):
        return Path(resume)
    address, step = split_step(resume)
    run = newest_run(address, storage.retry_s)
    path = _path_below(run.folder.url, storage.url) or "/".join(run.folder.parts[1:][-2:])
    folder = Path(paths.run_dir or Path(paths.logs_dir, path))
    if step is None:
        restore(run, folder)
        return folder
    if step not in run.checkpoints:
        raise CheckpointError(
            f"resume={resume} does not exist, or is not complete. There are: {', '.join(run.checkpoints)}."
        )
    restore(run, folder, step)
    return folder / CHECKPOINTS / step


def restore_newest(paths: PathsConfig, storage: StorageConfig, name: str | None) -> None:
    """Copy the run that resume=auto means from `storage.url`, if it was saved after all that are on this machine."""
    if storage.url is None:
        return
    url = storage.url.rstrip("/")
    if paths.run_dir:
        url = f"{url}/{_path_of_copy(Path(paths.run_dir), paths.logs_dir)}"
    elif name is not None:
        url = f"{url}/{name or 'run'}"
    runs = runs_below(RemoteFolder(url, storage.retry_s))
    if not runs:
        return
    run, local = max(runs, key=RemoteRun.saved_at), run_meant_by_auto(paths.run_dir, paths.logs_dir, name)
    if run.saved_at() <= ((saved_at(local) or 0.0) if local is not None else 0.0):
        return
    path = _path_below(run.folder.url, storage.url) or ""
    folder = Path(paths.run_dir or Path(paths.logs_dir, path))
    log(f"resume=auto takes {run.folder.url}, which was saved last", one_line=True)
    restore(run, folder)


def restore(run: RemoteRun, folder: Path, step: str | None = None) -> None:
    """Copy a checkpoint, by default the newest, and the run's files to a run folder.

    Files stay as they are where the folder has a newer checkpoint. Raises CheckpointError if another run holds the
    folder, or it is that of another run.
    """
    with only_run_in(folder):
        parent = folder / CHECKPOINTS
        newest_here = step_folders(parent)[-1:]
        parent.mkdir(parents=True, exist_ok=True)
        if step is not None:
            found = fetch(run, step, parent, replace=False)
        else:
            found = fetch_newest(run, parent, log, replace=False)
        if not newest_here or newest_here[0].name <= found.name:
            fetch_files(run.folder, folder)


def fetch_files(run: RemoteFolder, folder: Path) -> None:
    """Copy the files of a run, beside its checkpoints, to a folder; raises CheckpointError if it cannot be written."""
    check_folder(folder)
    there = run.files()
    for name in FILES:
        if name not in there:
            continue
        draft = folder / f".{name}.{os.getpid()}.tmp"
        try:
            draft.unlink(missing_ok=True)
            run.download(name, draft)
            draft.replace(folder / name)
        except FileNotFoundError:  # a run that goes on may have replaced it
            continue
        except OSError as error:
            raise CheckpointError(
                f"{folder / name} cannot be written: {error}. Try another paths.run_dir=<folder>."
            ) from error
        finally:
            with suppress(OSError):  # of a disk that cannot be written to, which is reported already
                draft.unlink()


def local_figures(path: str, cache: str | Path) -> Path:
    """Return a folder of runs or a run, without tensors: `path` itself, or the copy of an address in the cache.

    Raises CheckpointError if the address holds no run.
    """
    if not is_remote(path):
        return Path(path)
    above = RemoteFolder(path)
    folder = Path(cache) / "remote" / f"figures-{hashlib.sha256(above.url.encode()).hexdigest()[:16]}" / above.parts[-1]
    names = [name for name in above.files() if name.rpartition("/")[2] in _FIGURES and name.count("/") <= _DEEPEST]
    if not any(name.rpartition("/")[2] in (CONFIG, REPORT, TABLE) for name in names):
        raise CheckpointError(f"{above.url} holds no run: there is no {CONFIG} in it or below. Try s3://bucket/logs/a.")
    shutil.rmtree(folder, ignore_errors=True)
    for name in names:
        path_here = folder / name
        try:
            path_here.parent.mkdir(parents=True, exist_ok=True)
            above.download(name, path_here)
        except OSError as error:
            raise CheckpointError(
                f"{path_here} cannot be written: {error}. Try another paths.cache_dir=<folder>."
            ) from error
    return folder


def _path_below(address: str, storage_url: str | None) -> str | None:
    """Return the path of an address below `storage.url`; None if it is not below it, or there is none."""
    above = f"{storage_url.rstrip('/')}/" if storage_url is not None else None
    return address.removeprefix(above) if above is not None and address.startswith(above) else None


def _path_of_copy(folder: Path, logs_dir: str) -> str:
    """Return the part of a run folder's path that its copy has below `storage.url`."""
    absolute, above = folder.resolve(), Path(logs_dir).resolve()
    return absolute.relative_to(above).as_posix() if absolute.is_relative_to(above) else absolute.name
