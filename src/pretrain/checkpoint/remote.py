"""Checkpoints in an object storage: found, and copied to a folder where they are verified before they appear.

The layout is that of a run folder: <url>/<run>/checkpoints/step-00001200/manifest.json, and so on. An object without a
manifest beside it belongs to an upload that was not finished, and is not seen.
"""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.checkpoint.read import MAX_MANIFEST_BYTES, problem_of, read_manifest, step_folders, unverified
from pretrain.checkpoint.recorded_paths import settings_of
from pretrain.checkpoint.write import FILE_NAMES, sweep
from pretrain.config.run import RunConfig
from pretrain.config.serialize import from_dict
from pretrain.errors import CheckpointError, ConfigError
from pretrain.files.locks import wait_for_lock
from pretrain.files.object_storage import RETRY_S, RemoteFolder, is_remote
from pretrain.files.untrusted_files import parse_json

MANIFEST = "manifest.json"
_IN_RUN = re.compile(r"(?:(?P<run>.+)/)?checkpoints/(?P<step>step-\d{8,})/(?P<file>.+)", re.DOTALL)
_STEP = re.compile(r"step-\d{8,}")


class DamagedError(CheckpointError):
    """A checkpoint in the storage does not match its manifest."""


@dataclass(frozen=True)
class RemoteRun:
    """A run in an object storage, with the files of its complete checkpoints."""

    folder: RemoteFolder
    checkpoints: Mapping[str, Mapping[str, int]]  # by step-<n>, oldest first: the bytes of each file

    def saved_at(self) -> float:
        """Return the time that its newest checkpoint records, in seconds of Unix time; 0 if it cannot be read."""
        *_, newest = self.checkpoints
        try:
            record = parse_json(self.folder.read(f"checkpoints/{newest}/{MANIFEST}", MAX_MANIFEST_BYTES))
        except (OSError, ValueError):
            return 0.0
        found = record.get("saved_at") if isinstance(record, dict) else None
        return float(found) if isinstance(found, int | float) else 0.0


def split_step(url: str) -> tuple[str, str | None]:
    """Return the address of a run, and step-<n> where `url` is that of one of its checkpoints."""
    run, _, last = url.rstrip("/").rpartition("/")
    if _STEP.fullmatch(last) and run.endswith("/checkpoints"):
        return run.removesuffix("/checkpoints"), last
    return url.rstrip("/"), None


def runs_below(folder: RemoteFolder) -> list[RemoteRun]:
    """Return the runs at and below an address that have a complete checkpoint."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for name, size in folder.files().items():
        if match := _IN_RUN.fullmatch(name):
            steps = found.setdefault(match["run"] or "", {})
            steps.setdefault(match["step"], {})[match["file"]] = size
    runs = []
    for name, steps in sorted(found.items()):
        complete = {step: files for step, files in sorted(steps.items(), key=_number) if MANIFEST in files}
        if complete:
            runs.append(RemoteRun(folder.below(name) if name else folder, complete))
    return runs


def _number(item: tuple[str, Any]) -> int:
    return int(item[0].removeprefix("step-"))


def newest_run(url: str, retry_s: float = RETRY_S) -> RemoteRun:
    """Return the run at an address, or the one below it that was saved last.

    Raises CheckpointError if there is none.
    """
    runs = runs_below(RemoteFolder(url, retry_s))
    if not runs:
        raise CheckpointError(
            f"{url} holds no run with a complete checkpoint. Name a run's folder, a folder of runs or a checkpoint; "
            "other models, such as Hugging Face folders, have to be downloaded first."
        )
    return runs[0] if len(runs) == 1 else max(runs, key=RemoteRun.saved_at)


def fetch(run: RemoteRun, step: str, parent: Path, *, replace: bool) -> Path:
    """Copy a checkpoint to `parent`, where it appears once every file matches its manifest; return its folder.

    One that is there and equal stays. Another one of the same step is replaced, or with `replace` false an error: the
    folder is that of another run. Raises DamagedError for a checkpoint that does not verify, CheckpointError where
    storage or disk fail.
    """
    try:
        data = run.folder.read(f"checkpoints/{step}/{MANIFEST}", MAX_MANIFEST_BYTES)
    except (FileNotFoundError, ValueError) as error:
        raise DamagedError(f"{run.folder.url}/checkpoints/{step} cannot be used: {error}.") from None
    final, temporary = parent / step, parent / f"{step}.tmp"
    try:
        if os.path.lexists(final) and problem_of(final) is None:
            if (final / MANIFEST).read_bytes() == data:
                return final
            if not replace:
                raise CheckpointError(
                    f"{final} is not the checkpoint {run.folder.url}/checkpoints/{step}, so the folder is of another "
                    "run, or of the same one with other settings. Resume into another folder: paths.run_dir=<folder>."
                )
        sweep(parent)
        (temporary / "tokenizer").mkdir(parents=True)
        (temporary / MANIFEST).write_bytes(data)
        _download(run, step, temporary)
        if os.path.lexists(final):
            shutil.rmtree(final)
        temporary.rename(final)
    except OSError as error:
        raise CheckpointError(
            f"{run.folder.url}/checkpoints/{step} cannot be copied to {parent}: {error}. Free some space, or choose "
            "another disk: paths.logs_dir=<folder> or paths.cache_dir=<folder>."
        ) from error
    finally:
        sweep(parent)
    return final


def _download(run: RemoteRun, step: str, folder: Path) -> None:
    """Copy the files that the manifest in `folder` lists, and check each; errors as `fetch`."""
    where, sizes = f"{run.folder.url}/checkpoints/{step}", run.checkpoints[step]
    try:
        manifest = read_manifest(folder)
    except ValueError as error:
        raise DamagedError(f"{where} cannot be used: {error}.") from None
    files = {name: entry["bytes"] for name, entry in manifest["files"].items()}
    for name, size in files.items():
        if not FILE_NAMES.fullmatch(name) or sizes.get(name) != size:
            found = f"{sizes[name]:,} bytes" if name in sizes else "no such file"
            raise DamagedError(f"{where} cannot be used: {name!a} has {size:,} bytes in the manifest, and {found}.")
    free = shutil.disk_usage(folder).free
    if free < sum(files.values()):
        raise CheckpointError(
            f"{where} has {sum(files.values()) / 2**20:,.1f} MiB, and {free / 2**20:,.1f} MiB are free below "
            f"{folder.parent}. Free some, or choose another disk: paths.logs_dir=<folder> or paths.cache_dir=<folder>."
        )
    for name in files:
        try:
            run.folder.download(f"checkpoints/{step}/{name}", folder / name)
        except FileNotFoundError as error:
            raise DamagedError(f"{where} cannot be used: {error}.") from None
    problem = problem_of(folder)
    if int(step.removeprefix("step-")) != manifest["step"]:
        problem = f"manifest.json is of step {manifest['step']}"
    if problem:
        raise DamagedError(f"{where} cannot be used: {problem}.")


def fetch_newest(run: RemoteRun, parent: Path, report: Callable[[str], None], *, replace: bool) -> Path:
    """Copy the newest checkpoint of a run that verifies; `report` gets a line for each that does not.

    Raises CheckpointError as `fetch`, and if none verifies.
    """
    for step in reversed(list(run.checkpoints)):
        try:
            return fetch(run, step, parent, replace=replace)
        except DamagedError as error:
            report(f"skipped: {error}")
    raise CheckpointError(f"{run.folder.url} holds checkpoints, but all are damaged.")


def local_copy(
    url: str, cache: Path, report: Callable[[str], None] = lambda line: None, *, last: int = 1
) -> Path:  # fmt: skip
    """Return a folder of the cache with the model at an address: that of a checkpoint, a run, or a folder of runs.

    A checkpoint stands for itself; a run for its newest that verifies, with the `last` ones copied; a folder of runs
    for the run that was saved last. What the cache has and is unchanged is not copied again. Raises CheckpointError.
    """
    address, step = split_step(url)
    run = newest_run(address)
    if run.folder.url != address:
        report(f"taking the newest run below {url}: {run.folder.url}")
    above, _, name = run.folder.url.rpartition("/")
    folder = cache / "remote" / hashlib.sha256(above.encode()).hexdigest()[:16] / name
    parent = folder / "checkpoints"
    with wait_for_lock(folder / "lock"):
        parent.mkdir(exist_ok=True)
        if step is not None:
            if step not in run.checkpoints:
                raise CheckpointError(
                    f"{url} does not exist, or is not complete. There are: {', '.join(run.checkpoints)}."
                )
            return fetch(run, step, parent, replace=True)
        for path in step_folders(parent):
            if path.name not in run.checkpoints:
                shutil.rmtree(path, ignore_errors=True)
        if last == 1:
            fetch_newest(run, parent, report, replace=True)
        for each in list(run.checkpoints)[-last:] if last > 1 else []:
            fetch(run, each, parent, replace=True)
        return folder


def settings_at(url: str) -> RunConfig:
    """Return the settings of the run or checkpoint at an address, without its tensors; CheckpointError as `fetch`."""
    address, step = split_step(url)
    run = newest_run(address)
    with tempfile.TemporaryDirectory() as folder:
        try:
            data = run.folder.read(f"checkpoints/{step or [*run.checkpoints][-1]}/{MANIFEST}", MAX_MANIFEST_BYTES)
            (Path(folder) / MANIFEST).write_bytes(data)
            manifest = read_manifest(Path(folder))
            config: RunConfig = from_dict(manifest.get("whole_run") or manifest["config"])
        except (OSError, ValueError, ConfigError) as error:
            raise DamagedError(f"{url} cannot be used: {error}.") from None
    return config


def recorded_settings(path: str) -> RunConfig | None:
    """Return the settings of the run or checkpoint at a path or an address, whose files are not verified; or None."""
    try:
        if is_remote(path):
            return settings_at(path)
        saved = unverified(Path(path))
        return None if saved is None else settings_of(saved, whole_run=True)
    except CheckpointError:
        return None


def local_path(path: str, cache: str | Path, report: Callable[[str], None] = lambda line: None) -> Path:
    """Return a path of this machine as it is, and for an address of an object storage its copy in the cache."""
    return local_copy(path, Path(cache), report) if is_remote(path) else Path(path)
