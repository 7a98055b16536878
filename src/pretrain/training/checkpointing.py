"""The state of a run: what is saved, and how a new process takes it up again exactly."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from pretrain import checkpoint
from pretrain.checkpoint import Checkpoint
from pretrain.optim.state import load_optimizer_state, optimizer_state
from pretrain.training.callbacks.metrics import Metrics
from pretrain.training.module import TrainingModule


class RunState:
    """Saves a run under way and restores one: weights, optimizer, random generators and counters.

    The place in the data and the learning rate are functions of the step, so the step is all they need.
    """

    def __init__(
        self,
        trainer: L.Trainer,
        module: TrainingModule,
        metrics: Metrics,
        *,
        folder: Path,
        keep: int,
        config: dict[str, Any],
        facts: dict[str, Any],
        save_tokenizer: Callable[[Path], None],
    ) -> None:
        self.trainer = trainer
        self.module = module
        self.metrics = metrics
        self.folder = folder
        self.keep = keep
        self.config = config
        self.facts = facts  # what does not change during the run: fingerprints, family, parameters
        self.save_tokenizer = save_tokenizer

    def save(self, step: int) -> Path:
        """Write a checkpoint of this step, delete what is no longer kept, and return its folder."""
        model = self.module.learner.model
        optimizer = self.trainer.optimizers[0]
        parts: dict[str, dict[str, Tensor]] = {
            "model": {name: parameter.detach() for name, parameter in model.named_parameters()},
            "optimizer": optimizer_state(optimizer, model),
            "random": random_state(),
        }
        counters = {"tokens_seen": self.metrics.tokens_seen, "skipped_steps": self.module.skipped_steps}
        written = checkpoint.write(
            self.folder,
            step,
            parts,
            config=self.config,
            progress=self.facts | counters,
            save_tokenizer=self.save_tokenizer,
        )
        checkpoint.prune(self.folder, self.keep)
        return written


class Restore(Callback):
    """Puts the optimizer and the random generators back, last of all before the first step."""

    def __init__(self, saved: Checkpoint) -> None:
        self.saved = saved

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore what exists only now."""
        assert isinstance(pl_module, TrainingModule)
        load_optimizer_state(trainer.optimizers[0], pl_module.learner.model, self.saved.tensors("optimizer"))
        pl_module.skipped_steps = int(self.saved.progress.get("skipped_steps", 0))
        set_random_state(self.saved.tensors("random"))


def set_step(trainer: L.Trainer, step: int) -> None:
    """Have a trainer that has not started count from `step`, as if it had taken all steps before."""
    loop = trainer.fit_loop.epoch_loop
    batches = step * trainer.accumulate_grad_batches
    for name in ("ready", "started", "processed", "completed"):
        setattr(loop.batch_progress.total, name, batches)
    optimizer = loop.automatic_optimization.optim_progress.optimizer.step.total
    optimizer.ready = optimizer.completed = step
    loop._batches_that_stepped = step


def random_state() -> dict[str, Tensor]:
    """Return the states of the random generators of Python, NumPy, torch and its GPUs, as tensors."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002  (the global one is meant)
    state = {
        "python": torch.tensor([version, *words], dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.tensor([*np.asarray(keys).tolist(), position, has_gauss], dtype=torch.int64),
        "numpy_gauss": torch.tensor([cached], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    for index in range(torch.cuda.device_count()):
        state[f"cuda.{index}"] = torch.cuda.get_rng_state(index)
    return state


def set_random_state(state: dict[str, Tensor]) -> None:
    """Put the states of `random_state` back."""
    version, *words = state["python"].tolist()
    gauss = state["python_gauss"].tolist()
    random.setstate((version, tuple(words), gauss[0] if gauss else None))
    *keys, position, has_gauss = state["numpy"].tolist()
    cached = float(state["numpy_gauss"])
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    for index in range(torch.cuda.device_count()):
        if f"cuda.{index}" in state:
            torch.cuda.set_rng_state(state[f"cuda.{index}"], index)
