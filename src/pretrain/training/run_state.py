"""Save and load the whole state of a run, so that a resume is exact. Only this file touches Lightning's internals."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from pretrain.checkpoint import write as checkpoint_writing
from pretrain.checkpoint.read import EMA, Checkpoint
from pretrain.checkpoint.safetensors_file import TensorShard
from pretrain.checkpoint.upload import Uploads
from pretrain.config.run import RunConfig
from pretrain.errors import CheckpointError, printable
from pretrain.launch.rank import log
from pretrain.models.interface import LanguageModule
from pretrain.optim.groups import parameters_by_name
from pretrain.optim.state import load_optimizer_state, optimizer_state
from pretrain.parallel.config import ParallelDims
from pretrain.parallel.mesh import distribute_like, local_shards
from pretrain.parallel.parallelize import reshard
from pretrain.training.datamodule import TextDataModule
from pretrain.training.divergence import Spikes
from pretrain.training.host_copies import HostCopies
from pretrain.training.run_length import RunLength

if TYPE_CHECKING:
    from pretrain.training.callbacks.metrics import Metrics
    from pretrain.training.lightning_module import TrainingModule
    from pretrain.training.user_callbacks import UserCallbacks
    from pretrain.training.weight_average import WeightAverage


@dataclass(frozen=True)
class SaveSettings:
    """Where and how a run saves its checkpoints, and their constant metadata."""

    folder: Path
    keep: int  # newest checkpoints to keep
    asynchronous: bool
    config: dict[str, Any]  # in a run with stages, of this one
    whole_run: dict[str, Any] | None  # settings of all stages
    facts: dict[str, Any]  # constant metadata: fingerprints, objective, parameters
    typed: list[str]  # command-line overrides of all starts
    after: float  # Unix time of the newest save in logs_dir; this run's saves get later ones
    save_tokenizer: Callable[[Path], None]
    uploads: Uploads | None = None  # copies each checkpoint to an object storage; of rank 0


class RunState(Callback):
    """Saves and loads a run: weights, optimizer, random generators and counters.

    Position in the data and learning rate are functions of the step and of the batch sizes so far.
    """

    def __init__(
        self, trainer: L.Trainer, module: TrainingModule, metrics: Metrics, data: TextDataModule, settings: SaveSettings
    ) -> None:
        self.trainer = trainer
        self.user_callbacks: UserCallbacks | None = None
        self.logger_ids: Callable[[], dict[str, str]] = dict  # of the run at the services of its loggers, by name
        self.module = module
        self.metrics = metrics
        self.data = data
        self.settings = settings
        self.saved_at = settings.after
        self._loaded: Checkpoint | None = None
        self._thread = ThreadPoolExecutor(1, "checkpoint") if settings.asynchronous else None
        self._writing: Future[str | None] | None = None
        self._undeletable: set[Path] = set()  # folders that another program may own, already reported
        self._copies = HostCopies()  # of the tensors being written
        self._group: Any = None  # gloo group for checkpoints only: their threads run beside the training

    def add_user_callbacks(self, callbacks: UserCallbacks) -> None:
        """Save the state of these callbacks too, and load it if a checkpoint was loaded; called after `load`."""
        self.user_callbacks = callbacks
        if self._loaded is not None:
            callbacks.load_state_dict(self._loaded.progress)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Load the state of the user's callbacks, which are set up before."""
        if stage == "fit" and self.user_callbacks is not None:
            self.user_callbacks.restore()

    def load(self, saved: Checkpoint | None) -> None:
        """Load the counters of a checkpoint, if any; the rest is loaded before the first step.

        `configure_model` loads the weights, `on_train_start` the optimizer and the random generators, because they
        exist only then.
        """
        self._loaded = saved
        if saved is None:
            return
        for part in self._parts():
            part.load_state_dict(saved.progress)
        self.module.load_counters(saved.progress)
        set_step(self.trainer, saved.step)

    def counters(self) -> dict[str, Any]:
        """Return the `progress` of a checkpoint's manifest: the run's metadata and all of its counters."""
        state = self.settings.facts | self.module.counters()
        for part in self._parts():
            state |= part.state_dict()
        state["batch_sizes"] = self.data.batch_sizes.record(self.trainer.global_step)  # `course_from` reads them
        if self.user_callbacks is not None:
            state |= self.user_callbacks.state_dict()
        if ids := self.logger_ids():
            state["logger_ids"] = ids
        return state

    def _parts(self) -> list[Metrics | RunLength | Spikes | TextDataModule | WeightAverage]:
        average = [] if self.module.average is None else [self.module.average]
        return [self.metrics, self.module.length, self.module.spikes, self.data, *average]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Load optimizer and random generators. A rank that the saved run did not have keeps fresh generators.

        This is the last callback, so nothing draws random numbers between it and the first step.
        """
        if self._loaded is None:
            return
        model_with_loss = self.module.model_with_loss
        reshard(model_with_loss)  # a first validation has gathered weights; the optimizer state is sharded
        optimizer = self._loaded.tensors("optimizer")
        load_optimizer_state(trainer.optimizers[0], model_with_loss.model, optimizer, distribute_like)
        prefix = f"{self.module.parallel_dims.gradient_rank(trainer.global_rank)}/"
        states = self._loaded.tensors("random").items()
        if own_states := {name.removeprefix(prefix): state for name, state in states if name.startswith(prefix)}:
            set_random_state(own_states)

    def save(self, step: int) -> None:
        """Write a checkpoint of this step and delete old ones; return before it is written if asynchronous.

        A collective call: every process writes its own shards. If one fails, now or in the last asynchronous save,
        every process raises CheckpointError.
        """
        self._raise(self.wait())
        self.module.outcomes.settle()
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
        if self.module.average is not None:
            tensors[EMA] = self.module.average.tensors()
        parts = {part: local_shards(whole, rank, self.module.parallel_dims) for part, whole in tensors.items()}
        if self._thread is None:
            self._raise(self._write(step, parts, self.counters()))
        else:
            self._writing = self._thread.submit(self._write, step, self._copy(parts), self.counters())

    def finish(self) -> None:
        """Wait until the last checkpoint is safe on disk; raise CheckpointError on every process if it failed."""
        self._raise(self.wait())

    def wait(self) -> str | None:
        """Wait for the checkpoint being written, if any; return its error message, the same on every process."""
        writing, self._writing = self._writing, None
        return None if writing is None else writing.result()

    def _report_undeletable(self, reasons: dict[Path, str]) -> None:
        """Log once for each folder that is named like a checkpoint why it is not deleted."""
        for folder, reason in reasons.items():
            if folder not in self._undeletable:
                log(printable(f"warning: {folder} is never deleted: {reason}"))
        self._undeletable |= reasons.keys()

    def _raise(self, problem: str | None) -> None:
        if problem is not None:
            raise CheckpointError(problem)

    def _all_gather(self, value: Any) -> list[Any]:
        """Return the values of all processes by rank."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(values, value, self._group)
        return values

    def _origin(self) -> dict[str, Any]:
        """Return time of the save, the working folder relative to the run folder's parent, and the overrides."""
        self.saved_at = max(time.time(), self.saved_at + 0.001)
        folder = os.path.relpath(Path.cwd(), self.settings.folder.parent)
        return {"saved_at": self.saved_at, "working_folder": folder, "typed": self.settings.typed}

    def _copy(self, parts: dict[str, dict[str, Tensor | TensorShard]]) -> dict[str, dict[str, Tensor | TensorShard]]:
        """Return a copy of the parts in CPU memory that every save reuses, to be read after `HostCopies.wait`."""

        def copy(key: str, tensor: Tensor | TensorShard) -> Tensor | TensorShard:
            if isinstance(tensor, TensorShard):
                return replace(tensor, values=self._copies.copy(key, tensor.values))
            return self._copies.copy(key, tensor)

        return {
            part: {name: copy(f"{part}/{name}", tensor) for name, tensor in tensors.items()}
            for part, tensors in parts.items()
        }

    def _write(
        self, step: int, parts: dict[str, dict[str, Tensor | TensorShard]], progress: dict[str, Any]
    ) -> str | None:
        """Write a checkpoint and delete old ones; return the error message of the first process that failed."""
        problem = None
        try:
            self._copies.wait()
            manifest = {**self._origin(), "progress": progress, "config": self.settings.config}
            if self.settings.whole_run is not None:
                manifest["whole_run"] = self.settings.whole_run
            folder = checkpoint_writing.write(
                self.settings.folder,
                step,
                checkpoint_writing.Contents(parts, manifest, self.settings.save_tokenizer),
                checkpoint_writing.Writers(self.trainer.global_rank, self.trainer.world_size, self._all_gather),
            )
            if self.trainer.is_global_zero:
                in_use = self._submit(folder)
                self._report_undeletable(checkpoint_writing.prune(self.settings.folder, self.settings.keep, in_use))
        except CheckpointError as error:
            problem = str(error)
        return next(filter(None, self._all_gather(problem)), None)

    def _submit(self, checkpoint: Path) -> frozenset[Path]:
        """Have a checkpoint copied to the object storage, if any; return those that are still to be copied."""
        uploads = self.settings.uploads
        if uploads is None:
            return frozenset()
        uploads.submit(checkpoint)
        return uploads.in_use()


def saved_numbers(model: LanguageModule, config: RunConfig) -> int:
    """Return how many numbers of 32 bits a checkpoint holds: weights, their average if any, and optimizer state."""
    weights = sum(parameter.numel() for parameter in model.parameters())
    return weights * (2 if config.ema.decay else 1) + config.optimizer.state_numbers(model)


def check_disk_space(folder: Path, numbers: int) -> None:
    """Raise CheckpointError before any work if the first checkpoint, of so many 32-bit numbers, would not fit."""
    needed, free = 4 * numbers, shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"the disk of the run folder {folder} is too full for a checkpoint: it needs {needed / 2**20:,.1f} MiB, "
            f"and {free / 2**20:,.1f} MiB are free. Free some space, or choose another disk: paths.logs_dir=<folder>."
        )


def set_step(trainer: L.Trainer, step: int) -> None:
    """Set the step counters of a trainer that has not started, as if it had taken `step` steps."""
    loop = trainer.fit_loop.epoch_loop
    batches = step * trainer.accumulate_grad_batches
    for name in ("ready", "started", "processed", "completed"):
        setattr(loop.batch_progress.total, name, batches)
    optimizer = loop.automatic_optimization.optim_progress.optimizer.step.total
    optimizer.ready = optimizer.completed = step
    loop._batches_that_stepped = step


def end_after_step(trainer: L.Trainer, step: int) -> None:
    """Make `step` (from 0) the last of a running training; callbacks see it as `trainer.max_steps`."""
    trainer.fit_loop.epoch_loop.max_steps = step + 1


def keep_own_signal_handlers(trainer: L.Trainer) -> None:
    """Register no signal handlers of Lightning's, which would communicate in the middle of a step."""
    trainer._signal_connector.register_signal_handlers = lambda: None


def let_micro_batches_run(trainer: L.Trainer) -> None:
    """Have Lightning not ask all processes for SIGTERM at every micro-batch, which waits for the device.

    The run agrees on signals itself, once a step (`training/agreement.py`).
    """
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None


def every_random_state(parallel_dims: ParallelDims, device: torch.device) -> dict[str, Tensor]:
    """Return the states of all random generators as <gradient rank>/<generator>, on every process.

    Ranks of one tensor-parallel group draw the same numbers, so one state stands for the group.
    """
    own_states = random_state(device)
    if parallel_dims.ranks == 1:
        return {f"0/{name}": state for name, state in own_states.items()}
    states: dict[str, Tensor] = {}
    for name, state in own_states.items():
        parts = [torch.empty_like(state, device=device) for _ in range(parallel_dims.ranks)]
        torch.distributed.all_gather(parts, state.to(device))
        states |= {f"{rank}/{name}": part.cpu() for rank, part in enumerate(parts[:: parallel_dims.tensor])}
    return states


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the states of this process's random generators as tensors: Python, NumPy, torch and its GPU."""
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
    if device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: dict[str, Tensor]) -> None:
    """Restore the states that `random_state` returned."""
    version, *words = state["python"].tolist()
    has_python_gauss, python_gauss = state["python_gauss"].tolist()
    random.setstate((version, tuple(words), python_gauss if has_python_gauss else None))
    *keys, position, has_gauss = state["numpy"].tolist()
    cached = float(state["numpy_gauss"])
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])
