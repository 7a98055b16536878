"""Training metrics every n steps; in between nothing waits for the device."""

import math
from collections import defaultdict
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from pretrain.kernels.device import memory_in_use
from pretrain.objectives.batch import Batch
from pretrain.optim.groups import parameters_by_name
from pretrain.parallel.mesh import global_norm
from pretrain.training.callbacks import StepCallback
from pretrain.training.lightning_module import TrainingModule
from pretrain.training.throughput import Throughput


class Metrics(Callback):
    """Logs loss, learning rate, gradient norm, speed and memory by optimizer step."""

    def __init__(
        self, throughput: Throughput, *, every_n_steps: int, flops_per_token: float, peak_flops_per_s: float,
        validated_at: int,
    ) -> None:  # fmt: skip
        self.throughput = throughput
        self.every_n_steps = every_n_steps
        self.flops_per_token = flops_per_token
        self.peak_flops_per_s = peak_flops_per_s  # of all devices, as are the tokens
        self.tokens_seen = 0  # over the whole run, including those before a resume
        self.validated_at = validated_at  # step whose validation metrics are logged already; -1: none
        self.newest: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the number of tokens seen."""
        return {"tokens_seen": self.tokens_seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the number of tokens seen."""
        self.tokens_seen = int(state_dict.get("tokens_seen", 0))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self.throughput.resume()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the tokens of a micro-batch; log the metrics every n steps and at the last."""
        assert isinstance(pl_module, TrainingModule)
        tokens = batch.text_tokens * pl_module.parallel_dims.data_ranks
        self.throughput.add(tokens)
        self.tokens_seen += tokens
        step = trainer.global_step
        ended = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if ended and (step % self.every_n_steps == 0 or step == trainer.max_steps):
            self._log(trainer, pl_module, step)

    def _log(self, trainer: L.Trainer, module: TrainingModule, step: int) -> None:
        module.outcomes.settle()
        tokens_per_s, loss = self.throughput.tokens_per_s(), module.take_training_loss()
        utilization = tokens_per_s * self.flops_per_token / self.peak_flops_per_s
        self.newest = {} if loss is None else {"train/loss": loss}
        self.newest |= {
            "optim/learning_rate": module.learning_rate(),
            "optim/grad_norm": float(module.grad_norm),
            "optim/skipped_steps": float(module.skipped_steps),
            "speed/tokens_per_s": tokens_per_s,
            "speed/memory_gib": memory_in_use(module.device) / 2**30,
            "speed/goodput": self.throughput.goodput(),
            "progress/tokens": float(self.tokens_seen),
        }
        if module.loss_scaler is not None:
            self.newest["optim/loss_scale"] = module.loss_scale
        if (stage := module.length.stage) is not None and stage.name:
            self.newest["progress/stage"] = float(stage.number)
        if utilization <= 1.0:  # above: the peak was measured too low, while another process used the CPU
            self.newest["speed/mfu"] = utilization
        if "text" in self.throughput.other_s:
            self.newest["speed/data_wait_s"] = self.throughput.other_s["text"]
        # for callbacks that monitor a metric; `log_dict` copies each result: 3.5 ms for ten, this 0.1
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in self.newest.items()})
        write(trainer, self.newest, step)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock during validation."""
        self.throughput.pause("validation")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the validation metrics."""
        assert isinstance(pl_module, TrainingModule)
        if pl_module.validated and trainer.global_step != self.validated_at:
            write(trainer, pl_module.validated, trainer.global_step)
        if trainer.training or trainer.state.fn == "fit":
            self.throughput.resume()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock."""
        self.throughput.pause("the end")


class Norms(StepCallback):
    """Logs `weights/grad_norm/<part>`, before clipping, and `weights/norm/<part>`, before the step, every n steps.

    A part is a block, the embeddings, the final norm or the head. A collective call on sharded models.
    """

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self._norms: dict[str, Tensor] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set the module's gradient hook, which computes the norms of steps to log."""
        assert isinstance(pl_module, TrainingModule)
        parts = parts_of(pl_module.model_with_loss.model)

        def compute_norms(scale: Tensor) -> None:
            step = trainer.global_step + 1
            if step % self.every_n_steps == 0 or step == trainer.max_steps:
                for name, parameters in parts.items():
                    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
                    self._norms[f"weights/grad_norm/{name}"] = global_norm(gradients) * scale
                    self._norms[f"weights/norm/{name}"] = global_norm([p.detach() for p in parameters])

        pl_module.gradient_hook = compute_norms

    def on_step_end(self, trainer: L.Trainer, module: TrainingModule) -> None:
        """Log the norms of this step, if it computed any."""
        if self._norms:
            norms = {name: float(norm) for name, norm in self._norms.items()}
            write(trainer, norms, trainer.global_step, with_nan=True)  # NaN shows the part in which divergence begins
            self._norms.clear()


def parts_of(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the trained parameters by part: block_00, block_01, ..., and the model's other attributes by name."""
    parts: defaultdict[str, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in parameters_by_name(model).items():
        first, _, within = name.partition(".")
        number = within.partition(".")[0]
        if parameter.requires_grad:
            parts[f"block_{int(number):02}" if first == "blocks" and number.isdigit() else first].append(parameter)
    return dict(parts)


def write(trainer: L.Trainer, metrics: dict[str, float], step: int, *, with_nan: bool = False) -> None:
    """Log metrics on rank zero; without `with_nan`, omit NaN, the mean of nothing."""
    if trainer.is_global_zero:
        logged = {name: value for name, value in metrics.items() if with_nan or not math.isnan(value)}
        for logger in trainer.loggers:
            logger.log_metrics(logged, step)
