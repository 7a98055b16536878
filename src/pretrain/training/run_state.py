"""The state of a run: what is saved, and how a new process takes it up again exactly."""

import os
import random
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from pretrain.checkpoint import write as checkpoint_writing
from pretrain.checkpoint.read import Checkpoint
from pretrain.checkpoint.safetensors_file import TensorShard
from pretrain.errors import CheckpointError, printable
from pretrain.launch.rank import log
from pretrain.optim.groups import parameters_by_name
from pretrain.optim.state import load_optimizer_state, optimizer_state
from pretrain.parallel.config import ParallelDims
from pretrain.parallel.mesh import distribute_like, local_shards
from pretrain.parallel.parallelize import reshard
from pretrain.training.callbacks.metrics import Metrics
from pretrain.training.datamodule import TextDataModule
from pretrain.training.divergence import Spikes
from pretrain.training.lightning_module import TrainingModule
from pretrain.training.run_length import RunLength


@dataclass(frozen=True)
class SaveSettings:
    """Where and how a run saves its checkpoints, and what they hold beside its state."""

    folder: Path
    keep: int  # newest checkpoints that are not deleted
    asynchronous: bool
    config: dict[str, Any]
    facts: dict[str, Any]  # constant during the run: fingerprints, family, parameters
    typed: list[str]  # command-line overrides of all starts
    after: float  # Unix time of the newest save in a run folder nearby; later saves get a later time
    save_tokenizer: Callable[[Path], None]


class RunState(Callback):
    """Saves a run and loads it again: weights, optimizer, random generators and counters.

    The position in the data and the learning rate are functions of the step and of the batch sizes so far.
    """

    def __init__(
        self, trainer: L.Trainer, module: TrainingModule, metrics: Metrics, data: TextDataModule, settings: SaveSettings
    ) -> None:
        self.trainer = trainer
        self.module = module
        self.metrics = metrics
        self.data = data
        self.settings = settings
        self.saved_at = settings.after
        self._loaded: Checkpoint | None = None
        self._thread = ThreadPoolExecutor(1, "checkpoint") if settings.asynchronous else None
        self._writing: Future[str | None] | None = None
        self._left: set[Path] = set()  # folders that are not deleted, because another program may own them
        self._copies: dict[str, Tensor] = {}  # of the tensors being written; the next save uses the memory again
        self._group: Any = None  # gloo group of all processes for checkpoints: their threads run beside the training

    def load(self, saved: Checkpoint | None) -> None:
        """Continue from a checkpoint, if any: load the counters now, the rest before the first step.

        The weights are loaded where the model is materialized, the optimizer and the random generators in
        `on_train_start`, because they exist only then.
        """
        self._loaded = saved
        if saved is None:
            return
        for part in self._parts():
            part.load_state_dict(saved.progress)
        self.module.load_counters(saved.progress)
        set_step(self.trainer, saved.step)

    def counters(self) -> dict[str, Any]:
        """Return the `progress` of a checkpoint's manifest: the facts of the run and all of its counters."""
        state = self.settings.facts | self.module.counters()
        for part in self._parts():
            state |= part.state_dict()
        return state

    def _parts(self) -> tuple[Metrics, RunLength, Spikes, TextDataModule]:
        return self.metrics, self.module.length, self.module.spikes, self.data

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Load optimizer and random generators; a process that the saved run did not have keeps its fresh generators.

        The last callback, so that nothing draws random numbers between this and the first step.
        """
        if self._loaded is None:
            return
        model_with_loss = self.module.model_with_loss
        reshard(model_with_loss)  # a validation before has gathered weights, which the optimizer does not have
        optimizer = self._loaded.tensors("optimizer")
        load_optimizer_state(trainer.optimizers[0], model_with_loss.model, optimizer, distribute_like)
        prefix = f"{self.module.parallel_dims.data_rank(trainer.global_rank)}/"
        random = self._loaded.tensors("random")
        own = {name.removeprefix(prefix): state for name, state in random.items() if name.startswith(prefix)}
        if own:
            set_random_state(own)

    def save(self, step: int) -> None:
        """Write a checkpoint of this step and delete what is no longer kept; asynchronously, only begin to.

        Every process takes part and writes its own share. Where one cannot, or could not the last time, every process
        raises CheckpointError.
        """
        self._raise(self.wait())
        reshard(self.module.model_with_loss)
        model, rank, ranks = self.module.model_with_loss.model, self.trainer.global_rank, self.trainer.world_size
        if ranks > 1 and self._group is None:
            limit = timedelta(seconds=float(self.settings.config["trainer"]["timeout_s"]))
            self._group = torch.distributed.new_group(backend="gloo", timeout=limit)
        tensors = {
            "model": {name: parameter.detach() for name, parameter in parameters_by_name(model).items()},
            "optimizer": optimizer_state(self.trainer.optimizers[0], model),
            "random": every_random_state(self.module.parallel_dims, self.trainer.strategy.root_device),
        }
        parts = {part: local_shards(own, rank, self.module.parallel_dims) for part, own in tensors.items()}
        if self._thread is None:
            self._raise(self._write(step, parts, self.counters()))
        else:
            self._writing = self._thread.submit(self._write, step, self._copy(parts), self.counters())

    def finish(self) -> None:
        """Return once the last checkpoint would survive a loss of power; every process raises where it does not."""
        self._raise(self.wait())

    def wait(self) -> str | None:
        """Wait for the checkpoint being written, if any; return what went wrong with it, on all processes alike."""
        writing, self._writing = self._writing, None
        return None if writing is None else writing.result()

    def _report(self, strangers: dict[Path, str]) -> None:
        """Print once of each folder that is named like a checkpoint why it is not deleted."""
        for folder, reason in strangers.items():
            if folder not in self._left:
                log(printable(f"warning: {folder} is never deleted: {reason}"))
        self._left |= strangers.keys()

    def _raise(self, problem: str | None) -> None:
        if problem is not None:
            raise CheckpointError(problem)

    def _everyone(self, value: Any) -> list[Any]:
        """Return what each process gave, in their order."""
        if self._group is None:
            return [value]
        found: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(found, value, self._group)
        return found

    def _origin(self) -> dict[str, Any]:
        """Return how the run was typed, in which folder as seen from its own, and when this checkpoint was written."""
        self.saved_at = max(time.time(), self.saved_at + 0.001)
        folder = os.path.relpath(Path.cwd(), self.settings.folder.parent)
        return {"saved_at": self.saved_at, "working_folder": folder, "typed": self.settings.typed}

    def _copy(self, parts: dict[str, dict[str, Tensor | TensorShard]]) -> dict[str, dict[str, Tensor | TensorShard]]:
        """Return the parts as they are now, in memory of the processor that every save uses again."""

        def copy(key: str, tensor: Tensor | TensorShard) -> Tensor | TensorShard:
            if isinstance(tensor, TensorShard):
                return replace(tensor, values=kept(key, tensor.values))
            return kept(key, tensor)

        def kept(key: str, tensor: Tensor) -> Tensor:
            found = self._copies.get(key)
            if found is None or found.shape != tensor.shape:
                found = self._copies[key] = torch.empty(tensor.shape, dtype=tensor.dtype)
            return found.copy_(tensor)

        return {
            part: {name: copy(f"{part}/{name}", tensor) for name, tensor in own.items()} for part, own in parts.items()
        }

    def _write(
        self, step: int, parts: dict[str, dict[str, Tensor | TensorShard]], progress: dict[str, Any]
    ) -> str | None:
        """Write and prune; return what went wrong, for all processes to know."""
        problem = None
        try:
            manifest = {**self._origin(), "progress": progress, "config": self.settings.config}
            checkpoint_writing.write(
                self.settings.folder,
                step,
                checkpoint_writing.Contents(parts, manifest, self.settings.save_tokenizer),
                checkpoint_writing.Writers(self.trainer.global_rank, self.trainer.world_size, self._everyone),
            )
            if self.trainer.is_global_zero:
                self._report(checkpoint_writing.prune(self.settings.folder, self.settings.keep))
        except CheckpointError as error:
            problem = str(error)
        return next(filter(None, self._everyone(problem)), None)


def check_room(folder: Path, parameters: int) -> None:
    """Raise CheckpointError, before any work, where the first checkpoint would not fit on the disk."""
    needed, free = 12 * parameters, shutil.disk_usage(folder).free  # weights and two moments of the optimizer, 32 bits
    if free < needed:
        raise CheckpointError(
            f"the run folder {folder} has no room for a checkpoint: it needs {needed / 2**20:,.1f} MiB, and "
            f"{free / 2**20:,.1f} MiB are free. Make room, or choose another disk by paths.logs_dir=<folder>."
        )


def set_step(trainer: L.Trainer, step: int) -> None:
    """Have a trainer that has not started count from `step`, as if it had taken all steps before."""
    loop = trainer.fit_loop.epoch_loop
    batches = step * trainer.accumulate_grad_batches
    for name in ("ready", "started", "processed", "completed"):
        setattr(loop.batch_progress.total, name, batches)
    optimizer = loop.automatic_optimization.optim_progress.optimizer.step.total
    optimizer.ready = optimizer.completed = step
    loop._batches_that_stepped = step


def every_random_state(parallel_dims: ParallelDims, device: torch.device) -> dict[str, Tensor]:
    """Return the states of all random generators as <data rank>/<generator>, on every process.

    Processes that read the same rows draw the same numbers: what all of them hold must stay equal.
    """
    own = random_state(device)
    if parallel_dims.ranks == 1:
        return {f"0/{name}": state for name, state in own.items()}
    found: dict[str, Tensor] = {}
    for name, state in own.items():
        parts = [torch.empty_like(state, device=device) for _ in range(parallel_dims.ranks)]
        torch.distributed.all_gather(parts, state.to(device))
        found |= {f"{rank}/{name}": part.cpu() for rank, part in enumerate(parts[:: parallel_dims.tensor])}
    return found


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the states of this process's random generators, of Python, NumPy, torch and its GPU, as tensors."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002  (the global one is meant)
    state = {
        "python": torch.tensor([version, *words], dtype=torch.int64),
        "python_gauss": torch.tensor([gauss is not None, gauss or 0.0], dtype=torch.float64),
        "numpy": torch.tensor([*np.asarray(keys).tolist(), position, has_gauss], dtype=torch.int64),
        "numpy_gauss": torch.tensor([cached], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor]) -> None:
    """Put the states of `random_state` back."""
    version, *words = state["python"].tolist()
    has_python_gauss, python_gauss = state["python_gauss"].tolist()
    random.setstate((version, tuple(words), python_gauss if has_python_gauss else None))
    *keys, position, has_gauss = state["numpy"].tolist()
    cached = float(state["numpy_gauss"])
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
