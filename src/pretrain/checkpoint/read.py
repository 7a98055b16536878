"""Read checkpoint folders: find them, verify them, return their settings and tensors.

    checkpoints/step-00001200/
        model.safetensors       weights by parameter name, shared ones once
        ema.safetensors         average of the weights, of a run with ema.decay
        optimizer.safetensors   optimizer state as <parameter name>/<key>
        random.safetensors      states of the random generators
        tokenizer/              tokenizer.json and its roles
        manifest.json           written last: format, step, progress, settings, every file's size and sha256, own hash

In a sharded run each process writes its shards: model-rank-00000.safetensors, model-rank-00001.safetensors, ...
A folder without a manifest, or with files that do not match it, is not a checkpoint. It holds no pickle and no link.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pretrain.checkpoint.safetensors_file import TensorFiles
from pretrain.config.run import RunConfig
from pretrain.config.serialize import from_dict
from pretrain.errors import CheckpointError, ConfigError, printable
from pretrain.files.records import AtLeast, Count, check_seal, read_record, shortened
from pretrain.files.untrusted_files import MAX_JSON_BYTES, open_regular, read_json
from pretrain.program import command

FORMAT_VERSION = 1
MAX_MANIFEST_BYTES = MAX_JSON_BYTES
EMBEDDING = "embeddings.tokens.weight"
EMA = "ema"  # the part with the average of the weights
PARTS = ("model", EMA, "optimizer", "random")  # of tensors; a run without an average has none of EMA

# the settings may describe a model larger than the saved tensors by this factor and this many parameters: smaller
# mismatches are reported by name when the weights are loaded
_SLACK, _SLACK_PARAMETERS = 4, 1_000_000
_LATEST_S = 2.0**36  # in about 2,000 years; a later recorded time is invalid
_STEP = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class ListedFile:
    """A file's entry in the manifest."""

    bytes: Count
    sha256: str


@dataclass(frozen=True)
class TrainerState:
    """The trainer state in the manifest; earlier versions wrote fewer keys, some runs write more."""

    tokens_seen: Count = 0
    skipped_steps: Count = 0
    seconds: float = 0.0
    max_steps: Count | None = None  # at which the run would end; None: at no step, or an earlier version's
    losses: list[float] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    first_validation: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """The fields of manifest.json that every checkpoint has."""

    format: Annotated[int, AtLeast(1)]
    step: Count
    files: dict[str, ListedFile]
    config: dict[str, Any]
    progress: TrainerState


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk: its manifest is read and its files match it."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps taken when it was written."""
        return int(self.manifest["step"])

    @property
    def config(self) -> dict[str, Any]:
        """Settings of the run, in the form of `pretrain.config.serialize.to_dict`."""
        return dict(self.manifest["config"])

    @property
    def progress(self) -> dict[str, Any]:
        """Counters of the run: tokens seen, steps skipped, fingerprints of data and tokenizer."""
        return dict(self.manifest["progress"])

    def run_config(self) -> RunConfig:
        """Return the settings of the run.

        Raises CheckpointError if this version cannot read them, or their model is far larger than the saved tensors.
        """
        try:
            run: RunConfig = from_dict(self.config)
        except ConfigError as error:
            raise CheckpointError(f"{self.folder}: {error}") from error
        self._check_size(run)
        return run

    def whole_config(self) -> RunConfig:
        """Return the settings of all stages of the run; `run_config` has those of the stage that wrote the checkpoint.

        Raises CheckpointError as `run_config` does.
        """
        whole = self.manifest.get("whole_run")
        if whole is None:
            return self.run_config()
        try:
            if not isinstance(whole, dict):
                raise ConfigError(
                    f"manifest.json has whole_run={shortened(whole)}, which is no mapping of settings. "
                    "Take another checkpoint of the run."
                )
            run: RunConfig = from_dict(whole)
        except ConfigError as error:
            raise CheckpointError(f"{self.folder}: {error}") from error
        return run

    def _check_size(self, run: RunConfig) -> None:
        """Raise CheckpointError if the settings describe a model far larger than the saved tensors.

        Building it could exhaust memory. Smaller mismatches are reported when the weights are loaded.
        """
        shapes, model = self.tensors("model").shapes, run.model
        vocabulary = shapes[EMBEDDING][0] if len(shapes.get(EMBEDDING, ())) == 2 else 0
        described = model.parameter_count(vocabulary, run.objective.n_labels) if vocabulary else None
        if described is None:
            return
        saved = sum(shape.numel() for shape in shapes.values())
        if model.least_tensors > len(shapes) or described > _SLACK * saved + _SLACK_PARAMETERS:
            raise CheckpointError(
                f"{self.folder}: its settings describe a model of {described:,} parameters, and its files hold "
                f"{saved:,}. Take another checkpoint of the run."
            )

    @property
    def typed(self) -> list[str]:
        """Overrides of the command lines that started and resumed the run; empty if none were recorded."""
        overrides = self.manifest.get("typed")
        return [text for text in overrides if isinstance(text, str)] if isinstance(overrides, list) else []

    @property
    def working_folder(self) -> str | None:
        """Folder that relative paths of the settings start from, relative to the run folder; None: not recorded."""
        folder = self.manifest.get("working_folder")
        return folder if isinstance(folder, str) else None

    @property
    def tokenizer_folder(self) -> Path:
        """Folder of the run's tokenizer."""
        return self.folder / "tokenizer"

    @property
    def has_average(self) -> bool:
        """Whether it holds an average of the weights beside those that were trained."""
        return bool(_files_of(self.manifest, EMA))

    def tensors(self, part: str) -> TensorFiles:
        """Return the tensors of `model`, `ema`, `optimizer` or `random`; each is read in full to the CPU on access."""
        return TensorFiles([self.folder / name for name in _files_of(self.manifest, part)])


def open_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint at `path`, which is a checkpoint's folder, or a run's (then the newest that verifies).

    Raises CheckpointError with the reason if there is none or it is damaged.
    """
    if _STEP.fullmatch(path.name) or os.path.lexists(path / "manifest.json"):
        if path.is_symlink():  # made by the user, such as best -> checkpoints/step-00001200
            path = path.resolve()
        problem = problem_of(path)
        if problem:
            raise CheckpointError(f"{path} is not a usable checkpoint: {problem}.")
        return Checkpoint(path, read_manifest(path))
    checkpoint, skipped = newest(path)
    if checkpoint is None:
        if not path.exists():
            raise CheckpointError(f"{path} does not exist. Name the folder of a run, or one of its checkpoints.")
        reasons = "".join(f" {folder.name}: {reason}." for folder, reason in skipped)
        raise CheckpointError(f"{path} holds no usable checkpoint.{reasons or _instead_of(path)}")
    return checkpoint


def _instead_of(path: Path) -> str:
    """Return what a file or folder without any checkpoint has, or may be meant by it."""
    try:
        return f" The newest run below it is {latest_run(path)}."
    except CheckpointError:
        if (path / "checkpoints").is_dir():
            return " Its checkpoints folder has none."
        return " It has no checkpoints folder. Name the folder of a run, or one of its checkpoints."


def newest(run_folder: Path) -> tuple[Checkpoint | None, list[tuple[Path, str]]]:
    """Return the newest checkpoint of a run that verifies, and each newer one with the reason it was skipped."""
    skipped: list[tuple[Path, str]] = []
    for folder in reversed(step_folders(run_folder / "checkpoints")):
        problem = problem_of(folder)
        if problem is None:
            return Checkpoint(folder, read_manifest(folder)), skipped
        skipped.append((folder, problem))
    return None, skipped


def unverified(path: Path) -> Checkpoint | None:
    """Return the newest checkpoint at `path` (as of `open_checkpoint`) whose manifest is valid, or None."""
    folders = [path] if _STEP.fullmatch(path.name) else reversed(step_folders(path / "checkpoints"))
    for folder in folders:
        try:
            return Checkpoint(folder, read_manifest(folder))
        except (OSError, ValueError):
            continue
    return None


def latest_run(logs_folder: str | Path) -> Path:
    """Return the run folder below `logs_folder` with the newest checkpoint: the run that `auto` stands for.

    Compares the times recorded in checkpoints, which do not depend on names, copies, time zones or a clock set back.
    An average of checkpoints, which no run saved, is returned only where there is nothing else. Raises CheckpointError
    if there is no such folder.
    """
    times = {folder: saved for folder in runs_below(Path(logs_folder)) if (saved := saved_at(folder)) is not None}
    if not times:
        raise CheckpointError(f"no run with a checkpoint was found below {logs_folder}. Train one: {command('train')}")
    newest_first = sorted(times, key=lambda folder: (times[folder], folder.name), reverse=True)
    return next((folder for folder in newest_first if not _is_average(folder)), newest_first[0])


def run_meant_by_auto(run_dir: str | None, logs_dir: str, name: str | None) -> Path | None:
    """Return the run folder that resume=auto resumes, or None.

    It is `run_dir` if set and holding checkpoints, else the newest run called `name`, without a name the newest run.
    """
    if run_dir:
        return Path(run_dir) if step_folders(Path(run_dir) / "checkpoints") else None
    try:
        return latest_run(logs_dir if name is None else Path(logs_dir) / (name or "run"))
    except CheckpointError:
        return None


def newest_save(logs_folder: Path, run_folder: Path) -> float:
    """Return the newest time that a run below either folder recorded, in seconds of Unix time; 0 if none.

    Later saves record a later time, even if the clock was set back.
    """
    folders = {*runs_below(logs_folder), run_folder}
    return max((saved_at(folder) or 0.0 for folder in folders), default=0.0)


def saved_at(run_folder: Path) -> float | None:
    """Return the time of a run's newest checkpoint, in seconds of Unix time; None if it has none.

    A time that is not recorded or cannot be read is replaced by the manifest's modification time.
    """
    for folder in reversed(step_folders(run_folder / "checkpoints")):
        try:
            recorded = read_manifest(folder).get("saved_at")
        except (OSError, ValueError):
            recorded = None
        if isinstance(recorded, int | float) and 0 <= recorded < _LATEST_S:
            return float(recorded)
        manifest = folder / "manifest.json"
        return (manifest if os.path.lexists(manifest) else folder).lstat().st_mtime
    return None


def _is_average(run_folder: Path) -> bool:
    found = unverified(run_folder)
    return found is not None and bool(found.manifest.get("average_of"))


def runs_below(folder: Path) -> Iterator[Path]:
    """Yield this folder and those below it that have a folder `checkpoints`; links are not followed."""
    for path, folders, _ in os.walk(folder):
        if "checkpoints" in folders:
            folders.clear()  # runs are not nested
            yield Path(path)


def step_folders(parent: Path) -> list[Path]:
    """Return the folders below `parent` that are named like checkpoints, oldest step first."""
    if not parent.is_dir():
        return []
    folders = [path for path in parent.iterdir() if _STEP.fullmatch(path.name) and path.is_dir()]
    return sorted(folders, key=lambda path: int(path.name.split("-")[1]))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint after checking the type and range of every field in use.

    Does not read the files that it lists. Raises OSError, or ValueError with the problem.
    """
    if folder.is_symlink():
        raise ValueError("it is a link, and links are not read")
    try:
        manifest = read_json(folder / "manifest.json", MAX_MANIFEST_BYTES, follow_links=False)
    except ValueError as error:
        raise ValueError(f"manifest.json cannot be read: {' '.join(str(error).split())[:200]}") from None
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if type(version) is int and version > FORMAT_VERSION:  # a newer one may lack the other keys
        raise ValueError(f"it has format {version}, and this version reads up to {FORMAT_VERSION}")
    read_record(Manifest, manifest, "manifest.json")
    check_seal(manifest, "manifest.json")
    if _STEP.fullmatch(folder.name) and int(folder.name.split("-")[1]) != manifest["step"]:
        raise ValueError(f"manifest.json is of step {manifest['step']}")
    return dict(manifest)


def problem_of(folder: Path) -> str | None:
    """Return the problem of a checkpoint in one printable line; None if every file matches its manifest."""
    problem = _problem_of(folder)
    return None if problem is None else printable(problem, one_line=True)


def _problem_of(folder: Path) -> str | None:
    try:
        manifest = read_manifest(folder)
        for name, expected in manifest["files"].items():
            problem = _file_problem(folder, name, expected)
            if problem:
                return problem
        if not _files_of(manifest, "model"):
            return "manifest.json lists no model.safetensors"
        return _unlisted(folder, manifest)
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except (OSError, ValueError) as error:
        return str(error)


def _unlisted(folder: Path, manifest: dict[str, Any]) -> str | None:
    """Return the problem if the tokenizer's folder holds a file without a hash in the manifest."""
    names = sorted(path.name for path in (folder / "tokenizer").glob("*") if not path.name.startswith("."))
    unlisted = [name for name in names if f"tokenizer/{name}" not in manifest["files"]]
    return f"manifest.json does not list tokenizer/{unlisted[0]}" if unlisted else None


def _files_of(manifest: dict[str, Any], part: str) -> list[str]:
    """Return the names of a part's files: one, or one for each process that wrote shards."""
    pattern = re.compile(rf"{part}(-rank-\d{{5,}})?\.safetensors")
    return sorted(name for name in manifest["files"] if pattern.fullmatch(name))


def _file_problem(folder: Path, name: str, expected: dict[str, Any]) -> str | None:
    parts = Path(name).parts
    if Path(name).is_absolute() or ".." in parts or len(parts) > 2:
        return f"manifest.json names a file outside the folder: {name}"
    if (folder / name).parent.is_symlink():
        return f"{parts[0]} is a link, and links are not read"
    try:
        with open_regular(folder / name, follow_links=False) as file:
            size = os.fstat(file.fileno()).st_size
            if size != expected["bytes"]:
                return f"{name} has {size:,} bytes instead of {expected['bytes']:,}"
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except ValueError as error:
        return f"{name} cannot be read: {error}"
    return None if sha256 == expected["sha256"] else f"{name} does not match its sha256"
