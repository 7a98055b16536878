"""Write checkpoint folders under a temporary name, commit them by a rename, delete old ones after verifying the new."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from torch import Tensor

from pretrain.checkpoint.read import FORMAT_VERSION, problem_of, read_manifest, step_folders
from pretrain.checkpoint.safetensors_file import TensorShard, write_tensors
from pretrain.data.tokenizers.load import NAMES
from pretrain.errors import CheckpointError
from pretrain.files.atomic_files import sync_to_disk
from pretrain.files.records import sealed, sha256_of

FILE_NAMES = re.compile(
    r"manifest\.json|(model|ema|optimizer|random)(-rank-\d{5,})?\.safetensors|tokenizer/("
    + "|".join(map(re.escape, NAMES))
    + ")"
)


Tensors = Mapping[
    str, Mapping[str, Tensor | TensorShard]
]  # model, optimizer, random and, if there is an average, ema: by name


@dataclass(frozen=True)
class Contents:
    """The contents of a checkpoint; each process has its own shards in `tensors`."""

    tensors: Tensors
    manifest: Mapping[str, Any]  # config, progress and further keys, as JSON values
    save_tokenizer: Callable[[Path], None]


@dataclass(frozen=True)
class Writers:
    """The processes that write a checkpoint together; by default this one alone."""

    rank: int = 0
    size: int = 1
    all_gather: Callable[[Any], list[Any]] = lambda value: [value]  # a value of each process, by rank


def write(parent: Path, step: int, contents: Contents, writers: Writers = Writers()) -> Path:
    """Write a checkpoint below `parent` and return its folder, once it would survive a loss of power.

    Every process of a run calls it. An existing checkpoint of the same step stays if it verifies. Raises
    CheckpointError on all processes if the storage fails for one; earlier checkpoints are untouched.
    """
    final = parent / f"step-{step:08d}"
    temporary = parent / f"{final.name}.tmp"
    needed_bytes = sum(writers.all_gather(_bytes(contents.tensors)))

    def run(work: Callable[[], Any], on_all_ranks: bool = False) -> list[Any]:
        """Return the result of `work` by rank; without `on_all_ranks` only rank 0 works."""
        result, problem = None, None
        try:
            result = work() if on_all_ranks or writers.rank == 0 else None
        except (OSError, RuntimeError, CheckpointError) as error:
            problem = _cause(error, writers.rank)
        results = writers.all_gather((result, problem))
        for _, problem in results:
            if problem is not None:
                raise CheckpointError(_storage_message(parent, step, needed_bytes, problem))
        return [result for result, _ in results]

    try:
        if run(lambda: _begin(final, temporary, needed_bytes))[0]:
            return final
        hashes = run(lambda: _write_shards(temporary, contents.tensors, writers.rank), on_all_ranks=True)
        manifest = {"format": FORMAT_VERSION, "step": step, "ranks": writers.size, **contents.manifest}
        run(lambda: _commit(final, temporary, manifest, hashes, contents.save_tokenizer))
    finally:
        if writers.rank == 0 and _foreign_content(temporary, complete=False) is None:
            shutil.rmtree(temporary, ignore_errors=True)
    return final


def _begin(final: Path, temporary: Path, needed_bytes: int) -> bool:
    """Return True if the checkpoint exists and verifies; else create the empty temporary folder.

    Raises OSError of a full disk, before anything is written.
    """
    if os.path.lexists(final):
        if problem_of(final) is None:
            return True
        _remove(final)
    if os.path.lexists(temporary):
        _remove(temporary)
    temporary.mkdir(parents=True)
    if shutil.disk_usage(temporary).free < needed_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return False


def _write_shards(folder: Path, parts: Tensors, rank: int) -> dict[str, str]:
    """Write the shards of this process and return the sha256 of each file by name."""
    if not folder.is_dir():
        raise OSError(errno.ENOENT, "the run folder is not on storage that all machines share")
    hashes = {}
    for part, tensors in parts.items():
        if not tensors and rank > 0:
            continue
        sharded = any(isinstance(tensor, TensorShard) for tensor in tensors.values())
        name = f"{part}-rank-{rank:05d}.safetensors" if sharded else f"{part}.safetensors"
        hashes[name] = write_tensors(folder / name, tensors)
    return hashes


def _commit(
    final: Path,
    temporary: Path,
    manifest: dict[str, Any],
    hashes_by_rank: list[dict[str, str]],
    save_tokenizer: Callable[[Path], None],
) -> None:
    """Add tokenizer and manifest to the files of all processes, and give the folder its final name."""
    hashes = {name: sha for rank_hashes in hashes_by_rank for name, sha in rank_hashes.items()}
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


def _bytes(parts: Tensors) -> int:
    tensors = (tensor for part in parts.values() for tensor in part.values())
    return sum((tensor.values if isinstance(tensor, TensorShard) else tensor).nbytes for tensor in tensors)


def _cause(error: Exception, rank: int) -> str:
    """Return the failure's message, with the rank if not 0; torch hides the system's error in the context."""
    cause = error.__context__ if isinstance(error.__context__, OSError) else error
    return f"{cause}{f' (rank {rank})' if rank else ''}"


def _storage_message(parent: Path, step: int, needed_bytes: int, problem: str) -> str:
    """Return the error message with the needed and the free disk space."""
    space = ""
    if parent.exists():
        free_bytes = shutil.disk_usage(parent).free
        space = f" It needs {needed_bytes / 2**20:,.1f} MiB, and {free_bytes / 2**20:,.1f} MiB are free."
    return f"the checkpoint of step {step} could not be written below {parent}: {problem}.{space}"


def prune(parent: Path, keep: int, in_use: frozenset[Path] = frozenset()) -> dict[Path, str]:
    """Verify the newest checkpoint, then delete all but the newest `keep` and those `in_use`; 0 keeps all.

    Folders that are named like checkpoints but hold other files stay; returns them with the reason. Raises
    CheckpointError if the newest does not verify or an old one cannot be deleted.
    """
    folders = step_folders(parent)
    if not keep or len(folders) <= keep:
        return {}
    problem = problem_of(folders[-1])
    if problem:
        raise CheckpointError(f"{folders[-1]} does not verify after writing, so nothing older was deleted: {problem}.")
    foreign = {folder: reason for folder in folders if (reason := _foreign_content(folder, complete=True))}
    try:
        for folder in [folder for folder in folders if folder not in foreign][:-keep]:
            if folder not in in_use:
                _remove(folder)
    except OSError as error:
        raise CheckpointError(f"an old checkpoint below {parent} could not be deleted: {error}.") from error
    return foreign


def set_aside(parent: Path, step: int) -> list[Path]:
    """Rename the checkpoints after a step, so that a run that goes on from it never takes one of another course.

    Returns their new folders, which nothing reads or deletes. Raises CheckpointError if one cannot be renamed.
    """
    moved = []
    for folder in step_folders(parent):
        if int(folder.name.removeprefix("step-")) > step:
            taken = (folder.with_name(f"{folder.name}.left{'' if n == 1 else f'-{n}'}") for n in count(1))
            target = next(path for path in taken if not os.path.lexists(path))
            try:
                folder.rename(target)
            except OSError as error:
                raise CheckpointError(
                    f"{folder} is after step {step}, from which the run goes on, and cannot be set aside: {error}. "
                    "Move it out of the folder."
                ) from error
            moved.append(target)
    return moved


def sweep(parent: Path) -> dict[Path, str]:
    """Delete temporary folders of interrupted writes; return those that hold other files, with the reason."""
    temporary = [path for path in parent.glob("step-*.tmp") if re.fullmatch(r"step-\d{8,}\.tmp", path.name)]
    foreign = {path: reason for path in temporary if (reason := _foreign_content(path, complete=False))}
    for path in temporary:
        if path not in foreign:
            shutil.rmtree(path, ignore_errors=True)
    return foreign


def _remove(folder: Path) -> None:
    """Rename a checkpoint to its temporary name and delete it; raises OSError if it holds other files.

    A deletion that is interrupted leaves a temporary folder and never a damaged checkpoint.
    """
    temporary = folder.with_name(f"{folder.name}.tmp")
    for path in (folder, temporary):
        if os.path.lexists(path) and (reason := _foreign_content(path, complete=False)):
            raise OSError(errno.EEXIST, f"{path} is in the way: {reason}")
    if temporary.exists():
        shutil.rmtree(temporary)
    folder.rename(temporary)
    shutil.rmtree(temporary)


def _foreign_content(folder: Path, complete: bool) -> str | None:
    """Return why a folder is not a checkpoint, with `complete=False` not a part of one; None if it is."""
    try:
        if complete:
            read_manifest(folder)
        for path in [*folder.iterdir(), *(folder / "tokenizer").glob("*")]:
            name = path.relative_to(folder).as_posix()
            fits = path.is_dir() if name == "tokenizer" else path.is_file() and FILE_NAMES.fullmatch(name)
            if path.is_symlink() or not fits:
                return f"it holds {name!a}, which is not a file of a checkpoint"
    except (OSError, ValueError) as error:
        return str(error)
    return "it is a link" if folder.is_symlink() else None
