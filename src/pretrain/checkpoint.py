"""The checkpoint folder: what is in it, which of them are whole, and what they hold.

    checkpoints/step-00001200/
        model.safetensors       weights by parameter name, shared ones once
        optimizer.safetensors   optimizer state as <parameter name>/<key>
        random.safetensors      states of the random generators
        tokenizer/              tokenizer.json and its roles
        manifest.json           written last: format, step, progress, settings, size and sha256 of every file

Of a sharded run each process writes its own part: model-rank-00000.safetensors, model-rank-00001.safetensors, ...
A folder without a manifest, or whose files do not match it, is no checkpoint. Nothing in it is pickled.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.errors import CheckpointError
from pretrain.tensor_file import TensorFiles

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

    def tensors(self, part: str) -> TensorFiles:
        """Return the tensors of `model`, `optimizer` or `random`, each whole and on the CPU when it is asked for."""
        return TensorFiles([self.folder / name for name in _files_of(self.manifest, part)])


def open_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint at `path`, a checkpoint's folder or a run's folder (then the newest that verifies).

    Raises CheckpointError with the reason where there is none or it is damaged.
    """
    if _STEP.fullmatch(path.name) or (path / "manifest.json").exists():
        problem = problem_of(path)
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
        problem = problem_of(folder)
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


def problem_of(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint, or none if every file is what its manifest says."""
    try:
        manifest = _manifest(folder)
        if _STEP.fullmatch(folder.name) and int(folder.name.split("-")[1]) != manifest["step"]:
            return f"manifest.json is of step {manifest['step']}"
        for name, expected in manifest["files"].items():
            problem = _file_problem(folder, name, expected)
            if problem:
                return problem
        if not _files_of(manifest, "model"):
            return "manifest.json lists no model.safetensors"
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"manifest.json is damaged ({error})" if isinstance(error, KeyError | TypeError) else str(error)
    return None


def _files_of(manifest: dict[str, Any], part: str) -> list[str]:
    """Return the names of the files that hold a part: one, or one for each process that had a piece of it."""
    named = re.compile(rf"{part}(-rank-\d{{5,}})?\.safetensors")
    return sorted(name for name in manifest["files"] if named.fullmatch(name))


def _file_problem(folder: Path, name: str, expected: dict[str, Any]) -> str | None:
    parts = Path(name).parts
    if Path(name).is_absolute() or ".." in parts or len(parts) > 2:
        return f"manifest.json names a file outside the folder: {name}"
    path = folder / name
    size = path.stat().st_size
    if size != expected["bytes"]:
        return f"{name} has {size:,} bytes instead of {expected['bytes']:,}"
    if sha256_of(path) != expected["sha256"]:
        return f"{name} does not match its sha256"
    return None


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
