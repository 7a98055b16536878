"""The LightningModule: what one training step does, for every model and objective alike."""

import signal
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer
from torchmetrics import Metric

from pretrain.errors import DivergenceError
from pretrain.evaluation.totals import Totals, validation_figures
from pretrain.objectives.batch import IGNORE, Batch
from pretrain.objectives.objective import Learner
from pretrain.optim.config import OptimizerConfig, ScheduleConfig
from pretrain.parallel.clip import global_norm
from pretrain.training.run_length import RunLength

MAX_SKIPPED_IN_A_ROW = 10
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # the last is how Slurm announces the end of a job


class LossMetrics(Metric):
    """Loss and right answers summed over all targets of all ranks, each target counting once."""

    full_state_update = False
    loss_sum: Tensor
    right: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("loss_sum", "right", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, losses: Tensor, right: Tensor, counts: Tensor) -> None:
        """Add targets: cross-entropies in nats, whether each was the likeliest token, and whether it counts."""
        self.loss_sum += losses.double().sum()
        self.right += right.sum()
        self.count += counts.sum()

    def compute(self) -> tuple[float, float, float]:
        """Return the summed loss in nats, the targets that were the likeliest token, and all targets."""
        return float(self.loss_sum), float(self.right), float(self.count)


class TrainingModule(L.LightningModule):
    """Trains a learner with gradients of the mean over every target of the global batch."""

    def __init__(
        self,
        learner: Learner,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        *,
        length: RunLength,
        clip_norm: float,
        expected_targets: float,
        bits_per_byte_of_a_nat: dict[str, float],
        materialise: Callable[[DeviceMesh | None, torch.device], None],
    ) -> None:
        super().__init__()
        self.learner = learner
        self.optimizer_config = optimizer
        self.schedule = schedule
        self.length = length
        self.clip_norm = clip_norm
        self.expected_targets = expected_targets  # of a global batch, about: keeps gradients near their final scale
        self._scored = [  # (source, part of the objective, factor), in the order of the loaders
            (source, part, factor if objective.causal else None)
            for source, factor in bits_per_byte_of_a_nat.items()
            for part, objective in learner.objective.parts.items()
        ]
        self.materialise = materialise  # gives the learner its weights, on its device and over its mesh
        self.signal_received = 0  # by this process
        self.signal_agreed = 0  # by all processes, at the end of the step
        self._ready = False
        self.validation = nn.ModuleList(LossMetrics() for _ in self._scored)
        self.validated: dict[str, float] = {}  # the newest validation, by metric key
        self.grad_norm = torch.zeros(())
        self.skipped_steps = 0
        self._skipped_in_a_row = 0
        self._step_targets = torch.zeros((), dtype=torch.int64)
        self._logged_loss = torch.zeros((), dtype=torch.float64)
        self._logged_targets = torch.zeros((), dtype=torch.int64)
        self._samples: list[Tensor] = []

    def configure_model(self) -> None:
        """Spread the model over the devices and give it its weights, once."""
        if not self._ready:
            mesh = self.device_mesh["data_parallel"] if self.device_mesh is not None else None
            self.materialise(mesh, self.trainer.strategy.root_device)
            self._ready = True

    def on_train_start(self) -> None:
        """Start the clock of the run."""
        self.length.start()

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Return this micro-batch's part of the loss, for Lightning to differentiate.

        It is the sum over targets divided by a constant; `configure_gradient_clipping` divides by the true count of
        the global batch once that is known. Causal or masked is the objective's business: nothing here may ask which.
        """
        loss_sum, count = self.learner(batch)
        self._step_targets = self._step_targets.to(count.device) + count
        self._logged_loss = self._logged_loss.to(loss_sum.device) + loss_sum.detach()
        self._samples.append(batch.samples)
        return loss_sum * (self.trainer.accumulate_grad_batches / self.expected_targets)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer; the learning rate is a function of the run's place and needs no scheduler object."""
        optimizer = self.optimizer_config.build(self.learner.model)
        for group in optimizer.param_groups:
            group["height"] = group["lr"]
        return optimizer

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Turn summed gradients into the mean over the global batch's targets and clip their norm, in one pass.

        A gradient that is not finite is dropped before it reaches the weights, and the step counted as skipped. The
        learning rate is set here too, for all processes agree only now on how late it is.
        """
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self._agree()
        self._set_learning_rate(optimizer)
        ranks = self.trainer.world_size  # gradients come as the mean over ranks
        scale = self.expected_targets * ranks / self._step_targets.clamp(min=1).float()
        self.grad_norm = global_norm(gradients) * scale
        if not bool(torch.isfinite(self.grad_norm)):
            self._skip(optimizer)
            return
        if self.clip_norm:
            scale = scale * (self.clip_norm / (self.grad_norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, scale)
        self._skipped_in_a_row = 0
        self._end_step()

    def _agree(self) -> None:
        """Sum the step's targets over all processes; learn whether any was asked to stop, and the first one's time."""
        seconds = self.length.clock()
        if self.trainer.world_size == 1:
            self.signal_agreed = self.signal_received
        else:
            asked = [int(self.signal_received == number) for number in STOP_SIGNALS]
            clock = int(seconds * 1000) if self.trainer.is_global_zero else 0
            sums = torch.stack([self._step_targets, *torch.tensor([*asked, clock], device=self._step_targets.device)])
            torch.distributed.all_reduce(sums)
            self._step_targets = sums[0]
            *counts, clock = sums[1:].tolist()
            self.signal_agreed = next((n for n, count in zip(STOP_SIGNALS, counts, strict=True) if count), 0)
            seconds = clock / 1000
        self.length.reach(seconds)

    def _set_learning_rate(self, optimizer: Optimizer) -> None:
        """Set the learning rate of this step, and have the trainer end after it where it is the last."""
        step = self.global_step
        share = self.schedule.share(step, self.length.planned_steps(step))
        for group in optimizer.param_groups:
            group["lr"] = group["height"] * share
        if self.length.ends_with(step):
            self.trainer.fit_loop.epoch_loop.max_steps = step + 1

    def _skip(self, optimizer: Optimizer) -> None:
        optimizer.zero_grad(set_to_none=True)
        self.skipped_steps += 1
        self._skipped_in_a_row += 1
        rows = torch.cat(self._samples).tolist()
        self._logged_loss.zero_()
        self._end_step()
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise DivergenceError(
                f"the gradient was not finite in {MAX_SKIPPED_IN_A_ROW} steps in a row, up to step {self.global_step}; "
                f"the last of them read samples {rows}. Try a lower optimizer.learning_rate, then resume=auto."
            )

    def _end_step(self) -> None:
        self._logged_targets = self._logged_targets.to(self._step_targets.device) + self._step_targets
        self._step_targets = torch.zeros_like(self._step_targets)
        self._samples.clear()

    def learning_rate(self) -> float:
        """Return the learning rate of the newest step, of the first group of parameters."""
        optimizer = self.optimizers()
        assert isinstance(optimizer, Optimizer)
        return float(optimizer.param_groups[0]["lr"])

    def take_training_loss(self) -> float:
        """Return the mean loss in nats per target since the last call; this waits for the device."""
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(self._logged_loss)
        loss = float(self._logged_loss) / max(1, int(self._logged_targets))
        self._logged_loss.zero_()
        self._logged_targets.zero_()
        return loss

    def validation_step(self, batch: Batch, batch_index: int, dataloader_idx: int = 0) -> None:
        """Score one batch of validation rows; each source has its own loader."""
        losses, right = self.learner.evaluate(batch)
        metrics = self.validation[dataloader_idx]
        assert isinstance(metrics, LossMetrics)
        metrics.update(losses, right, batch.targets != IGNORE)

    def on_validation_epoch_end(self) -> None:
        """Keep the figures of this validation in `validated`: of all rows scored, then of each part and source."""
        found: list[tuple[str, str, Totals]] = []
        for (source, part, factor), metrics in zip(self._scored, self.validation, strict=True):
            assert isinstance(metrics, LossMetrics)
            found.append((source, part, Totals(*metrics.compute(), factor)))
            metrics.reset()
        self.validated = {f"val/{name}": value for name, value in validation_figures(found).items()}
