"""The mean of the weights of several checkpoints, as a checkpoint that scores, generates, exports and starts runs."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.checkpoint.read import Checkpoint, open_checkpoint, step_folders
from pretrain.checkpoint.safetensors_file import TensorFiles
from pretrain.checkpoint.write import Contents, write
from pretrain.config.run import RunConfig
from pretrain.config.serialize import to_dict
from pretrain.errors import CheckpointError, ConfigError, shown
from pretrain.models.lora import adapted, is_adapter, merged
from pretrain.models.lora_config import LoraConfig

_TOKENIZER = "tokenizer_fingerprint"


def last_checkpoints(run: Path, last: int) -> list[Path]:
    """Return the folders of a run's newest `last` checkpoints, oldest first; raises ConfigError if it has fewer."""
    folders = step_folders(run / "checkpoints")
    if len(folders) < last:
        raise ConfigError(
            f"last={last} checkpoints are to be averaged, and {run} has {len(folders)}. "
            + (f"Try last={len(folders)}, or train" if len(folders) > 1 else "Train")
            + " with a larger checkpoint.keep."
        )
    return folders[-last:]


def average(folders: Sequence[Path], output: Path) -> Path:
    """Write the mean of the checkpoints' weights below the run-like folder `output`; return the checkpoint's folder.

    Settings, counters and tokenizer are those of the last one. The sum is in float64, each weight keeps its type.
    Adapters are merged into their matrices before, so that the average has none. Raises ConfigError for fewer than two
    and for checkpoints of other shapes, CheckpointError for one that cannot be read, and where `output` holds a run.
    """
    if len(folders) < 2:
        raise ConfigError(f"{len(folders)} checkpoint is no average. Name two or more: 'checkpoints=[a,b]' or last=5.")
    if step_folders(output / "checkpoints"):
        raise CheckpointError(f"output={output} already holds the checkpoints of a run. Choose another folder.")
    saved = [open_checkpoint(folder) for folder in folders]
    newest = saved[-1]
    for checkpoint in saved:
        if checkpoint.progress.get(_TOKENIZER) != newest.progress.get(_TOKENIZER):
            raise ConfigError(
                f"{checkpoint.folder} and {newest.folder} have different tokenizers, so that the same row of their "
                "embeddings means other text. Average checkpoints of one run, or of runs with one tokenizer.path."
            )
        _check_same_model(checkpoint, newest)
    tensors = {"model": _mean(saved)}
    said: dict[str, Any] = dict(newest.manifest)
    kept: dict[str, Any] = {key: said[key] for key in ("progress", "config", "whole_run", "typed") if key in said}
    if newest.run_config().lora.is_on:
        kept = _without_adapters(kept, sum(weight.numel() for weight in tensors["model"].values()))
    manifest = kept | {"saved_at": said.get("saved_at", 0.0), "average_of": [each.step for each in saved]}
    if newest.working_folder is not None:
        working = newest.folder.parent.parent / newest.working_folder
        manifest["working_folder"] = os.path.relpath(working.resolve(), output.resolve())

    def save_tokenizer(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(newest.tokenizer_folder.iterdir()):
            (folder / path.name).write_bytes(path.read_bytes())

    return write(output / "checkpoints", newest.step, Contents(tensors, manifest, save_tokenizer))


def _check_same_model(checkpoint: Checkpoint, newest: Checkpoint) -> None:
    """Raise ConfigError where two checkpoints compute different things from weights of equal shapes."""
    ours, theirs = checkpoint.run_config(), newest.run_config()
    (shape, others), meaning = (ours.model.transformer, theirs.model.transformer), _meaning(theirs)
    changed = shape.differences(others) if shape is not None and others is not None else {}
    pairs = {f"model.{name}": pair for name, pair in changed.items()}
    pairs |= {name: (value, meaning[name]) for name, value in _meaning(ours).items() if value != meaning[name]}
    for name, (value, other) in pairs.items():
        raise ConfigError(
            f"{checkpoint.folder} and {newest.folder} are of different models: {name} differs, {shown(value)} "
            f"and {shown(other)}. Average checkpoints of one shape."
        )


def _meaning(run: RunConfig) -> dict[str, object]:
    """Return the settings beside the model's that decide what its weights mean."""
    classifier = run.objective.classifier
    return {
        "causal attention": run.objective.causal,
        "objective.labels": None if classifier is None else list(classifier.labels),
    }


def _without_adapters(kept: dict[str, Any], parameters: int) -> dict[str, Any]:
    """Return the manifest's entries of a model of so many parameters whose adapters are merged."""
    settings = {key: kept[key] | {"lora": to_dict(LoraConfig())} for key in ("config", "whole_run") if key in kept}
    return kept | settings | {"progress": kept["progress"] | {"parameters": parameters}}


class _Merged:
    """The weights of a checkpoint by name and with their shapes, each adapter merged into its matrix.

    Products of A and B are averaged: the product of the averages of the two is another matrix.
    """

    def __init__(self, saved: TensorFiles, lora: LoraConfig) -> None:
        self._saved, self._lora = saved, lora
        self._adapted = {f"{module}.weight" for module in adapted(saved.shapes) if lora.is_on}
        self.shapes = {name: shape for name, shape in saved.shapes.items() if not (lora.is_on and is_adapter(name))}

    def __getitem__(self, name: str) -> Tensor:
        weight = self._saved.read(name)
        return merged(name, weight, self._saved.read, self._lora.scale) if name in self._adapted else weight


def _mean(saved: Sequence[Checkpoint]) -> dict[str, Tensor]:
    """Return the mean of each weight; raises ConfigError where a checkpoint has others than the last one."""
    parts = [_Merged(each.tensors("model"), each.run_config().lora) for each in saved]
    shapes = parts[-1].shapes
    for checkpoint, part in zip(saved, parts, strict=True):
        if part.shapes != shapes:
            name = sorted(set(part.shapes.items()) ^ set(shapes.items()))[0][0]
            ours, theirs = (tuple(found[name]) if name in found else "none" for found in (part.shapes, shapes))
            raise ConfigError(
                f"{checkpoint.folder} and {saved[-1].folder} are of different models: {name} differs, {ours} "
                f"and {theirs}. Average checkpoints of one shape."
            )
    mean = {}
    for name in shapes:
        total = torch.zeros(shapes[name], dtype=torch.float64)
        for part in parts:
            total += part[name]
        mean[name] = (total / len(parts)).to(parts[-1][name].dtype)
    return mean
