"""Write checkpoint folders: to a temporary name, committed by a rename, verified before older ones are deleted."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pretrain.checkpoint.read import FORMAT_VERSION, problem_of, read_manifest, sha256_of, step_folders
from pretrain.checkpoint.safetensors_file import TensorShard, write_tensors
from pretrain.data.tokenizers.load import NAMES
from pretrain.errors import CheckpointError
from pretrain.files.atomic_files import sync_to_disk
from pretrain.files.records import sealed

_WRITTEN = re.compile(
    r"manifest\.json|(model|optimizer|random)(-rank-\d{5,})?\.safetensors|tokenizer/("
    + "|".join(map(re.escape, NAMES))
    + ")"
)


def write(
    parent: Path,
    step: int,
    parts: Mapping[str, Mapping[str, Tensor | TensorShard]],
    *,
    config: dict[str, Any],
    progress: dict[str, Any],
    origin: Mapping[str, Any] | None = None,
    save_tokenizer: Callable[[Path], None],
    rank: int = 0,
    ranks: int = 1,
    everyone: Callable[[Any], list[Any]] = lambda value: [value],
) -> Path:
    """Write a checkpoint below `parent` and return its folder, once it would survive a loss of power.

    Every process of a run calls it with its own shards: `parts` maps model, optimizer and random to tensors or shards
    by name. `everyone(value)` gathers a value from each process, in their order. `origin` holds further manifest keys:
    the run's command line and the time of this save. An existing checkpoint of the same step stays if it verifies.
    Raises CheckpointError, on all processes, where the storage fails for one; what was there before is untouched.
    """
    final = parent / f"step-{step:08d}"
    temporary = parent / f"{final.name}.tmp"
    needed = sum(everyone(_bytes(parts)))

    def together(work: Callable[[], Any], of_all: bool = False) -> list[Any]:
        """Return the result of the work on each process; without `of_all` only rank 0 does any."""
        found, problem = None, None
        try:
            found = work() if of_all or rank == 0 else None
        except (OSError, RuntimeError, CheckpointError) as error:
            problem = _cause(error, rank)
        answers = everyone((found, problem))
        for _, problem in answers:
            if problem is not None:
                raise CheckpointError(_storage_message(parent, step, needed, problem))
        return [answer for answer, _ in answers]

    try:
        if together(lambda: _begin(final, temporary, needed))[0]:
            return final
        files = together(lambda: _write_own(temporary, parts, rank), of_all=True)
        manifest = {"format": FORMAT_VERSION, "step": step, "ranks": ranks, **(origin or {})}
        manifest |= {"progress": progress, "config": config}
        together(lambda: _commit(final, temporary, manifest, files, save_tokenizer))
    finally:
        if rank == 0 and _why_not_ours(temporary, whole=False) is None:
            shutil.rmtree(temporary, ignore_errors=True)
    return final


def _begin(final: Path, temporary: Path, needed: int) -> bool:
    """Return True if the checkpoint exists already; else make the folder to write to."""
    if os.path.lexists(final):
        if problem_of(final) is None:
            return True
        _remove(final)
    if os.path.lexists(temporary):
        _remove(temporary)
    temporary.mkdir(parents=True)
    _check_disk_space(temporary, needed)
    return False


def _write_own(folder: Path, parts: Mapping[str, Mapping[str, Tensor | TensorShard]], rank: int) -> dict[str, str]:
    """Write the shards of this process and return the sha256 of each file by name."""
    if not folder.is_dir():
        raise OSError(errno.ENOENT, "the run folder is not on storage that all machines share")
    found = {}
    for part, tensors in parts.items():
        if not tensors and rank > 0:
            continue
        spread = any(isinstance(tensor, TensorShard) for tensor in tensors.values())
        name = f"{part}-rank-{rank:05d}.safetensors" if spread else f"{part}.safetensors"
        found[name] = write_tensors(folder / name, tensors)
    return found


def _commit(
    final: Path,
    temporary: Path,
    manifest: dict[str, Any],
    files: list[dict[str, str]],
    save_tokenizer: Callable[[Path], None],
) -> None:
    """Add tokenizer and manifest to the files of all processes, and give the folder its final name."""
    hashes = {name: sha for of_rank in files for name, sha in of_rank.items()}
    save_tokenizer(temporary / "tokenizer")
    for path in sorted((temporary / "tokenizer").iterdir()):
        sync_to_disk(path)
        hashes[f"tokenizer/{path.name}"] = sha256_of(path)
    sync_to_disk(temporary / "tokenizer")
    manifest["files"] = {
        name: {"bytes": (temporary / name).stat().st_size, "sha256": sha} for name, sha in hashes.items()
    }
    (temporary / "manifest.json").write_text(json.dumps(sealed(manifest), indent=1), encoding="utf8")
    sync_to_disk(temporary / "manifest.json")
    sync_to_disk(temporary)
    temporary.rename(final)
    sync_to_disk(final.parent)


def _check_disk_space(folder: Path, needed: int) -> None:
    """Raise the error of a full disk before anything is written rather than in the middle."""
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _bytes(parts: Mapping[str, Mapping[str, Tensor | TensorShard]]) -> int:
    tensors = (tensor for part in parts.values() for tensor in part.values())
    return sum((tensor.values if isinstance(tensor, TensorShard) else tensor).nbytes for tensor in tensors)


def _cause(error: Exception, rank: int) -> str:
    """Return what failed, with the rank if not 0; torch hides the system's error in the context."""
    cause = error.__context__ if isinstance(error.__context__, OSError) else error
    return f"{cause}{f' (rank {rank})' if rank else ''}"


def _storage_message(parent: Path, step: int, needed: int, problem: str) -> str:
    """Return what failed and how much disk space there was."""
    room = ""
    if parent.exists():
        room = f" It needs {needed / 2**20:,.1f} MiB, and {shutil.disk_usage(parent).free / 2**20:,.1f} MiB are free."
    return f"the checkpoint of step {step} could not be written below {parent}: {problem}.{room}"


def prune(parent: Path, keep: int) -> dict[Path, str]:
    """Delete all but the newest `keep` checkpoints, after the newest has been read back and verified; 0 keeps all.

    Returns the folders that are named like checkpoints but hold other files, which stay, with the reason.
    """
    folders = step_folders(parent)
    if not keep or len(folders) <= keep:
        return {}
    problem = problem_of(folders[-1])
    if problem:
        raise CheckpointError(f"{folders[-1]} does not verify after writing, so nothing older was deleted: {problem}.")
    strangers = {folder: reason for folder in folders if (reason := _why_not_ours(folder, whole=True))}
    try:
        for folder in [folder for folder in folders if folder not in strangers][:-keep]:
            _remove(folder)
    except OSError as error:
        raise CheckpointError(f"an old checkpoint below {parent} could not be deleted: {error}.") from error
    return strangers


def sweep(parent: Path) -> dict[Path, str]:
    """Delete leftovers of interrupted writes; return folders named so that hold other files, with the reason."""
    drafts = [path for path in parent.glob("step-*.tmp") if re.fullmatch(r"step-\d{8,}\.tmp", path.name)]
    strangers = {path: reason for path in drafts if (reason := _why_not_ours(path, whole=False))}
    for path in drafts:
        if path not in strangers:
            shutil.rmtree(path, ignore_errors=True)
    return strangers


def _remove(folder: Path) -> None:
    """Delete a checkpoint so that a half-deleted one never looks like one; OSError where it holds something else."""
    doomed = folder.with_name(f"{folder.name}.tmp")
    for path in (folder, doomed):
        if os.path.lexists(path) and (reason := _why_not_ours(path, whole=False)):
            raise OSError(errno.EEXIST, f"{path} is in the way: {reason}")
    if doomed.exists():
        shutil.rmtree(doomed)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _why_not_ours(folder: Path, whole: bool) -> str | None:
    """Return why a folder is not known to be a checkpoint of ours, or with `whole=False` a part of one; else None."""
    try:
        if whole:
            read_manifest(folder)
        for path in [*folder.iterdir(), *(folder / "tokenizer").glob("*")]:
            name = path.relative_to(folder).as_posix()
            fits = path.is_dir() if name == "tokenizer" else path.is_file() and _WRITTEN.fullmatch(name)
            if path.is_symlink() or not fits:
                return f"it holds {name!a}, which is not a file of a checkpoint"
    except (OSError, ValueError) as error:
        return str(error)
    return "it is a link" if folder.is_symlink() else None
