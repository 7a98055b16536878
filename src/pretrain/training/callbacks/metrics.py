"""Figures of the run, every n steps: nothing waits for the device in between."""

import math
from typing import Any

import lightning as L
import psutil
import torch
from lightning.pytorch.callbacks import Callback

from pretrain.objectives.batch import Batch
from pretrain.training.lightning_module import TrainingModule
from pretrain.training.throughput import Throughput


class Metrics(Callback):
    """Logs losses, learning rate, gradient norm, speed and memory; the unit of its axis is the optimizer step."""

    def __init__(
        self, throughput: Throughput, *, every_n_steps: int, flops_per_token: float, peak_flops_per_s: float,
        validated_at: int,
    ) -> None:  # fmt: skip
        self.throughput = throughput
        self.every_n_steps = every_n_steps
        self.flops_per_token = flops_per_token
        self.peak_flops_per_s = peak_flops_per_s
        self.tokens_seen = 0  # over the whole run, what was read before a resume included
        self.validated_at = validated_at  # the step of a validation whose figures a resume finds there already
        self.newest: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the tokens read so far."""
        return {"tokens_seen": self.tokens_seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue counting from the tokens of `state_dict`."""
        self.tokens_seen = int(state_dict.get("tokens_seen", 0))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self.throughput.resume()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count tokens; at a step to be logged, log."""
        assert isinstance(pl_module, TrainingModule)
        tokens = batch.tokens.numel() * pl_module.parallel_dims.data_ranks
        self.throughput.add(tokens)
        self.tokens_seen += tokens
        step = trainer.global_step
        ended = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if ended and (step % self.every_n_steps == 0 or step == trainer.max_steps):
            self._log(trainer, pl_module, step)

    def _log(self, trainer: L.Trainer, module: TrainingModule, step: int) -> None:
        tokens_per_s, loss = self.throughput.tokens_per_s(), module.take_training_loss()
        utilization = tokens_per_s * self.flops_per_token / self.peak_flops_per_s
        self.newest = {} if loss is None else {"train/loss": loss}
        self.newest |= {
            "optim/learning_rate": module.learning_rate(),
            "optim/grad_norm": float(module.grad_norm),
            "optim/skipped_steps": float(module.skipped_steps),
            "speed/tokens_per_s": tokens_per_s,
            "speed/memory_gib": memory_gib(module.device),
            "speed/goodput": self.throughput.goodput(),
            "progress/tokens": float(self.tokens_seen),
        }
        if utilization <= 1.0:  # above, the measured peak was too low: something else ran on the processor
            self.newest["speed/mfu"] = utilization
        if "text" in self.throughput.other_s:
            self.newest["speed/data_wait_s"] = self.throughput.other_s["text"]
        # for callbacks that monitor a figure; `log_dict` copies each result, 2 ms a logged step
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in self.newest.items()})
        write(trainer, self.newest, step)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock while validating."""
        self.throughput.pause("validation")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the validation's figures."""
        assert isinstance(pl_module, TrainingModule)
        if pl_module.validated and trainer.global_step != self.validated_at:
            write(trainer, pl_module.validated, trainer.global_step)
        if trainer.training or trainer.state.fn == "fit":
            self.throughput.resume()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock."""
        self.throughput.pause("the end")


def write(trainer: L.Trainer, figures: dict[str, float], step: int, *, with_nan: bool = False) -> None:
    """Log figures once over all ranks; NaN, a mean over nothing, is left out unless it is what one looks for."""
    if trainer.is_global_zero:
        found = {name: value for name, value in figures.items() if with_nan or not math.isnan(value)}
        for logger in trainer.loggers:
            logger.log_metrics(found, step)


def memory_gib(device: torch.device) -> float:
    """Return the most memory that the GPU has held, or what the process holds now on a processor, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return float(psutil.Process().memory_info().rss) / 2**30
