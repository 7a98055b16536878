"""The checkpoint folder: written beside, committed by a rename, verified before anything older goes.

    checkpoints/step-00001200/
        model.safetensors       weights by parameter name, shared ones once
        optimizer.safetensors   optimizer state as <parameter name>/<key>
        random.safetensors      states of the random generators
        tokenizer/              tokenizer.json and its roles
        manifest.json           written last: format, step, progress, settings, size and sha256 of every file

A folder without a manifest, or whose files do not match it, is no checkpoint. Nothing in it is pickled.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pretrain.errors import CheckpointError
from pretrain.tensor_file import read_tensors, write_tensors

FORMAT_VERSION = 1
MAX_MANIFEST_BYTES = 16_000_000
_STEP = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the disk whose manifest has been read and whose files have been compared with it."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps taken when it was written."""
        return int(self.manifest["step"])

    @property
    def config(self) -> dict[str, Any]:
        """Settings of the run, as `pretrain.config.to_dict` gave them."""
        return dict(self.manifest["config"])

    @property
    def progress(self) -> dict[str, Any]:
        """Counters of the run: tokens seen, steps skipped, fingerprints of data and tokenizer."""
        return dict(self.manifest["progress"])

    @property
    def tokenizer_folder(self) -> Path:
        """Folder of the tokenizer that the weights were trained with."""
        return self.folder / "tokenizer"

    def tensors(self, part: str) -> dict[str, Tensor]:
        """Return the tensors of `model`, `optimizer` or `random`, on the CPU."""
        return read_tensors(self.folder / f"{part}.safetensors")


def write(
    parent: Path,
    step: int,
    parts: Mapping[str, Mapping[str, Tensor]],
    *,
    config: dict[str, Any],
    progress: dict[str, Any],
    save_tokenizer: Callable[[Path], None],
    ranks: int = 1,
    whole: Callable[[Tensor], Tensor] = Tensor.detach,
) -> Path:
    """Write a checkpoint below `parent` and return its folder, once it would survive a loss of power.

    `parts` maps model, optimizer and random to tensors by name; `whole` gathers one that is spread over processes.
    An existing checkpoint of the same step is kept if it verifies. Raises CheckpointError where the storage fails; what
    was there before is untouched.
    """
    final = parent / f"step-{step:08d}"
    temporary = parent / f"{final.name}.tmp"
    try:
        if final.exists():
            if _problem(final) is None:
                return final
            _remove(final)
        if temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir(parents=True)
        _check_room(temporary, parts)
        hashes = {f"{name}.safetensors": write_tensors(temporary / f"{name}.safetensors", part, whole)
                  for name, part in parts.items()}  # fmt: skip
        save_tokenizer(temporary / "tokenizer")
        for path in sorted((temporary / "tokenizer").iterdir()):
            _flush(path)
            hashes[f"tokenizer/{path.name}"] = _sha256(path)
        _flush(temporary / "tokenizer")
        files = {name: {"bytes": (temporary / name).stat().st_size, "sha256": sha} for name, sha in hashes.items()}
        manifest = {
            "format": FORMAT_VERSION,
            "step": step,
            "ranks": ranks,
            "progress": progress,
            "config": config,
            "files": files,
        }
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf8")
        _flush(temporary / "manifest.json")
        _flush(temporary)
        temporary.rename(final)
        _flush(parent)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(_storage_message(parent, step, parts, error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def _check_room(folder: Path, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Raise the error of a full disk before anything is written rather than in the middle."""
    if shutil.disk_usage(folder).free < _bytes(parts):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _bytes(parts: Mapping[str, Mapping[str, Tensor]]) -> int:
    return sum(tensor.numel() * tensor.element_size() for part in parts.values() for tensor in part.values())


def _storage_message(parent: Path, step: int, parts: Mapping[str, Mapping[str, Tensor]], error: Exception) -> str:
    """Say what failed and how much room there was; torch hides the system's error in the context."""
    cause = error.__context__ if isinstance(error.__context__, OSError) else error
    needed = _bytes(parts)
    room = ""
    if parent.exists():
        room = f" It needs {needed / 2**20:,.1f} MiB, and {shutil.disk_usage(parent).free / 2**20:,.1f} MiB are free."
    return f"the checkpoint of step {step} could not be written below {parent}: {cause}.{room}"


def open_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint at `path`, a checkpoint's folder or a run's folder (then the newest that verifies).

    Raises CheckpointError with the reason where there is none or it is damaged.
    """
    if _STEP.fullmatch(path.name) or (path / "manifest.json").exists():
        problem = _problem(path)
        if problem:
            raise CheckpointError(f"{path} is not a usable checkpoint: {problem}.")
        return Checkpoint(path, _manifest(path))
    found, passed_over = newest(path)
    if found is None:
        reasons = "".join(f" {folder.name}: {reason}." for folder, reason in passed_over)
        raise CheckpointError(
            f"{path} holds no usable checkpoint.{reasons or ' There is none in its checkpoints folder.'}"
        )
    return found


def newest(run_folder: Path) -> tuple[Checkpoint | None, list[tuple[Path, str]]]:
    """Return the newest checkpoint of a run that verifies, and each newer one passed over with the reason."""
    passed_over: list[tuple[Path, str]] = []
    for folder in reversed(step_folders(run_folder / "checkpoints")):
        problem = _problem(folder)
        if problem is None:
            return Checkpoint(folder, _manifest(folder)), passed_over
        passed_over.append((folder, problem))
    return None, passed_over


def latest_run(logs_folder: str | Path) -> Path:
    """Return the run folder below `logs_folder` whose newest checkpoint was written last; raises CheckpointError."""
    found = Path(logs_folder).glob("**/checkpoints/step-*/manifest.json")
    manifests = [path for path in found if _STEP.fullmatch(path.parent.name)]
    if not manifests:
        raise CheckpointError(f"no run with a checkpoint was found below {logs_folder}. Train one: python src/train.py")
    return max(manifests, key=lambda path: path.stat().st_mtime).parents[2]


def step_folders(parent: Path) -> list[Path]:
    """Return the folders below `parent` that are named like checkpoints, oldest step first."""
    if not parent.is_dir():
        return []
    folders = [path for path in parent.iterdir() if _STEP.fullmatch(path.name) and path.is_dir()]
    return sorted(folders, key=lambda path: int(path.name.split("-")[1]))


def prune(parent: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, after the newest has been read back and verified; 0 keeps all."""
    folders = step_folders(parent)
    if not keep or len(folders) <= keep:
        return
    problem = _problem(folders[-1])
    if problem:
        raise CheckpointError(f"{folders[-1]} does not verify after writing, so nothing older was deleted: {problem}.")
    try:
        for folder in folders[:-keep]:
            _remove(folder)
    except OSError as error:
        raise CheckpointError(f"an old checkpoint below {parent} could not be deleted: {error}.") from error


def sweep(parent: Path) -> None:
    """Delete what interrupted writes left behind."""
    for path in parent.glob("step-*.tmp") if parent.is_dir() else ():
        shutil.rmtree(path, ignore_errors=True)


def _remove(folder: Path) -> None:
    """Delete a checkpoint so that a half-deleted one never looks like one."""
    doomed = folder.with_name(f"{folder.name}.tmp")
    if doomed.exists():
        shutil.rmtree(doomed)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise ValueError(f"manifest.json is larger than {MAX_MANIFEST_BYTES:,} bytes")
    manifest = json.loads(path.read_text(encoding="utf8"))
    for key, kind in (("format", int), ("step", int), ("files", dict), ("config", dict), ("progress", dict)):
        if not isinstance(manifest, dict) or not isinstance(manifest.get(key), kind):
            raise ValueError(f"manifest.json has no {key}")
        if key == "format" and manifest["format"] > FORMAT_VERSION:  # a newer one may lack the other keys
            raise ValueError(f"it has format {manifest['format']}, and this version reads up to {FORMAT_VERSION}")
    return dict(manifest)


def _problem(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint, or none if every file is what its manifest says."""
    try:
        manifest = _manifest(folder)
        if _STEP.fullmatch(folder.name) and int(folder.name.split("-")[1]) != manifest["step"]:
            return f"manifest.json is of step {manifest['step']}"
        for name, expected in manifest["files"].items():
            problem = _file_problem(folder, name, expected)
            if problem:
                return problem
        if "model.safetensors" not in manifest["files"]:
            return "manifest.json lists no model.safetensors"
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"manifest.json is damaged ({error})" if isinstance(error, KeyError | TypeError) else str(error)
    return None


def _file_problem(folder: Path, name: str, expected: dict[str, Any]) -> str | None:
    parts = Path(name).parts
    if Path(name).is_absolute() or ".." in parts or len(parts) > 2:
        return f"manifest.json names a file outside the folder: {name}"
    path = folder / name
    size = path.stat().st_size
    if size != expected["bytes"]:
        return f"{name} has {size:,} bytes instead of {expected['bytes']:,}"
    if _sha256(path) != expected["sha256"]:
        return f"{name} does not match its sha256"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Have the disk hold a file or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
