"""Open a trained model: a run, a checkpoint, a Hugging Face folder or a hub name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.checkpoint.read import EMA, Checkpoint, latest_run, open_checkpoint
from pretrain.checkpoint.recorded_paths import settings_of
from pretrain.checkpoint.remote import local_path
from pretrain.checkpoint.safetensors_file import TensorFiles
from pretrain.config.run import RunConfig
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import CheckpointError, printable
from pretrain.files.object_storage import is_remote
from pretrain.interop.folder import (
    CONFIG,
    INDEX,
    PICKLED,
    WEIGHTS,
    StatedVectors,
    fetch,
    is_hub_name,
    open_folder,
    stated_vectors,
)
from pretrain.kernels.onednn_linear import install
from pretrain.models.config import ModelConfig
from pretrain.models.interface import LanguageModule, allocate, build_model
from pretrain.models.lora import A, B, adapted, merged
from pretrain.models.lora_config import LoraConfig
from pretrain.objectives.config import ObjectiveConfig
from pretrain.objectives.fine_tuning_config import Pooling
from pretrain.parallel.mesh import load_parameters
from pretrain.program import command
from pretrain.training.config import PathsConfig, SavedWeights

LoadParameter = Callable[[str, torch.Size], Tensor]


@dataclass(frozen=True)
class ModelFolder:
    """A trained model; its weights are read on demand, one at a time."""

    folder: Path
    tokenizer_folder: Path
    tokenizer: Tokenizer
    shape: ModelConfig
    objective: ObjectiveConfig  # of its training; for a Hugging Face folder as far as its config.json tells
    starts_with_bos: bool  # whether prompts begin with BOS
    metadata: dict[str, Any]  # step, tokens seen and so on
    values: Callable[[LanguageModule], LoadParameter]  # checks all names and shapes, then reads parameters by name
    run: RunConfig | None = None  # settings of the run that wrote it; None for a Hugging Face folder
    saved: TensorFiles | None = None  # tensors of the checkpoint, adapters apart from their matrices
    has_head: bool = True  # False: of a Hugging Face class without the layers that predict tokens
    stated: StatedVectors | None = None  # of the modules of sentence-transformers in a Hugging Face folder

    @property
    def pooling(self) -> Pooling | None:
        """How a model that predicts no tokens, or no labels, represents a text; None for others."""
        return self.objective.embedding_pooling or (None if self.has_head else Pooling.auto)

    def without_weights(self) -> LanguageModule:
        """Return the model on the meta device, which takes no memory."""
        return build_without_weights(self.shape, self.objective, self.tokenizer)

    def load(self) -> LanguageModule:
        """Return the model with its weights, float32 on the CPU; raises CheckpointError if they do not fit."""
        model = self.without_weights()
        values = self.values(model)
        allocate(model, "cpu", lambda: build(self.shape, self.objective, self.tokenizer))
        load_parameters(model, values)
        install(model)
        return model


def open_model(
    path: str | Path, weights: SavedWeights = SavedWeights.trained, *, cache: str | Path = ".cache"
) -> ModelFolder:
    """Return the model at `path`: a run, a folder of runs, a checkpoint, a Hugging Face folder or a hub name.

    A run, a folder of runs or a checkpoint may be in an object storage, s3://bucket/logs; it is copied to `cache`.
    A run means its newest checkpoint, a folder of runs the newest run. A hub name is owner/name or owner/name@revision,
    if no folder here has the owner's name. Raises CheckpointError for a missing or damaged model or average of weights,
    ConfigError for settings that are not ours.
    """
    folder = fetch(str(path)) if is_hub_name(str(path)) else run_or_model(local_path(str(path), cache))
    if not _is_hugging_face(folder):
        return _of_checkpoint(open_checkpoint(folder), weights)
    if weights is SavedWeights.ema:
        raise CheckpointError(f"weights=ema is the average of a run of ours, and {path} is none. Try weights=trained.")
    return _of_hugging_face(folder)


def run_or_model(path: Path) -> Path:
    """Return the folder if it is a run or a model, or the newest run in it.

    Raises CheckpointError if `path` does not exist, is a file, or holds neither.
    """
    kinds = "a run's folder, a folder of runs, a checkpoint, a Hugging Face folder, or owner/name of the hub"
    if not path.exists():
        raise CheckpointError(f"{path} does not exist. Name {kinds}.")
    if not path.is_dir():
        raise CheckpointError(f"{path} is a file, and a model is a folder. Name {kinds}.")
    ours = ("checkpoints", "manifest.json", "config.yaml")
    if any((path / name).exists() for name in ours) or path.name.startswith("step-") or _is_hugging_face(path):
        return path
    if (path / "adapter_config.json").exists():
        raise CheckpointError(
            f"{path} holds adapters of PEFT, and no model. Train them on, or merge them into their base, by "
            f"{command('train')} experiment=lora init_from=<the base> lora.init_from={path}."
        )
    try:
        return latest_run(path)
    except CheckpointError:
        raise CheckpointError(
            f"{path} holds no model, and no folder below it is a run with a checkpoint. Name {kinds}."
        ) from None


def chosen_model(checkpoint: str, paths: PathsConfig) -> str:
    """Return the folder or hub name for a script's setting `checkpoint` or `run`; "auto" is the newest run.

    What is in an object storage is copied to the cache. Prints to standard error which run was chosen, unless the
    setting names it. Raises CheckpointError if there is none.
    """
    logs_folder = paths.logs_dir
    if is_remote(checkpoint):
        return str(local_path(checkpoint, paths.cache_dir, lambda line: print(printable(line), file=sys.stderr)))
    if checkpoint != "auto" and not Path(checkpoint).is_dir():
        return checkpoint  # a hub name, or an error in `open_model`
    folder = latest_run(logs_folder) if checkpoint == "auto" else run_or_model(Path(checkpoint))
    if folder != Path(checkpoint):
        searched = logs_folder if checkpoint == "auto" else checkpoint
        print(printable(f"taking the newest run below {searched}: {folder}", one_line=True), file=sys.stderr)
    return str(folder)


def build_without_weights(shape: ModelConfig, objective: ObjectiveConfig, tokenizer: Tokenizer) -> LanguageModule:
    """Return the model of these settings on the meta device, which takes no memory."""
    with torch.device("meta"):
        return build(shape, objective, tokenizer)


def build(shape: ModelConfig, objective: ObjectiveConfig, tokenizer: Tokenizer) -> LanguageModule:
    """Return the model of these settings on the current default device."""
    model = build_model(shape, shape.vocabulary(tokenizer.vocab_size), objective.causal, objective.n_labels)
    if shape.exclude_vocab_padding and objective.n_labels is None and model.vocab_size > tokenizer.vocab_size:
        model.head.n_tokens = tokenizer.vocab_size  # see n_tokens_of of models/interface.py
    return model


def saved_values(checkpoint: Checkpoint, lora: LoraConfig, model: LanguageModule, part: str = "model") -> LoadParameter:
    """Return a function that reads saved parameters by name; raises CheckpointError naming what does not fit.

    `part` is the part of the checkpoint: `model`, or `ema`. Adapters in it, whose settings are `lora`, are merged into
    the matrices of a model that has none.
    """
    saved, hint = checkpoint.tensors(part), "Take model and tokenizer of the run that wrote it."
    sizes = {name: parameter.shape for name, parameter in model.named_parameters()}
    merging = set(adapted(saved.shapes.keys())) if lora.is_on and not adapted(sizes.keys()) else set()
    for module in merging:
        outputs, inputs = sizes.get(f"{module}.weight", torch.Size([0, 0]))
        sizes |= {module + A: torch.Size([lora.rank, inputs]), module + B: torch.Size([outputs, lora.rank])}
    missing, unknown = sorted(sizes.keys() - saved.shapes.keys()), sorted(saved.shapes.keys() - sizes.keys())
    if missing or unknown:
        raise CheckpointError(
            f"{checkpoint.folder} does not fit the model: it lacks {missing[:3] or 'nothing'} and "
            f"has {unknown[:3] or 'nothing'} that the model does not. Take the model settings of the run that wrote it."
        )
    for name, size in sizes.items():
        saved.check_weight(name, size, hint)

    def value(name: str, size: torch.Size) -> Tensor:
        weight = saved.read(name)
        has_adapter = name.endswith(".weight") and name.removesuffix(".weight") in merging
        return merged(name, weight, saved.read, lora.scale) if has_adapter else weight

    return value


def _is_hugging_face(folder: Path) -> bool:
    """Whether a folder has files of a Hugging Face model, and no manifest of ours."""
    if (folder / "manifest.json").exists() or folder.name.startswith("step-") or not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    return bool(names & {CONFIG, INDEX, WEIGHTS}) or any(name.endswith(PICKLED) for name in names)


def _of_checkpoint(checkpoint: Checkpoint, weights: SavedWeights) -> ModelFolder:
    run = settings_of(checkpoint)
    if weights is SavedWeights.ema and not checkpoint.has_average:
        raise CheckpointError(
            f"{checkpoint.folder} holds no average of weights for weights=ema. Train with ema.decay=0.999, "
            "or try weights=trained."
        )
    part = EMA if weights is SavedWeights.ema else "model"
    return ModelFolder(
        folder=checkpoint.folder,
        tokenizer_folder=checkpoint.tokenizer_folder,
        tokenizer=Tokenizer.load(checkpoint.tokenizer_folder),
        shape=run.model,
        objective=run.objective,
        starts_with_bos=True,  # like the documents in its training
        metadata={"step": checkpoint.step, **checkpoint.progress, **_averages(checkpoint, part)},
        values=partial(saved_values, checkpoint, run.lora, part=part),
        run=run,
        saved=checkpoint.tensors(part),
    )


def _averages(checkpoint: Checkpoint, part: str) -> dict[str, Any]:
    """Return what a checkpoint's weights are an average of, if they are one."""
    steps = checkpoint.manifest.get("average_of")
    return {"weights": part} if part == EMA else {"average_of": steps} if steps else {}


def _of_hugging_face(folder: Path) -> ModelFolder:
    model = open_folder(folder)
    return ModelFolder(
        folder=folder,
        tokenizer_folder=folder,
        tokenizer=model.tokenizer,
        shape=model.shape,
        objective=model.objective,
        starts_with_bos=model.tokenizer.added_ids[0] == [model.tokenizer.bos_id],
        metadata={"architecture": model.family.class_of(model.shape)},
        values=model.values,
        has_head=model.family.class_of(model.shape) != model.family.bare,
        stated=stated_vectors(folder),
    )
