"""The LightningModule: what one training step does, for every model and objective alike."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer

from pretrain.errors import DataError, DivergenceError
from pretrain.objectives.batch import Batch
from pretrain.objectives.objective import ModelWithLoss
from pretrain.optim.config import OptimizerConfig
from pretrain.optim.schedules import ScheduleConfig
from pretrain.parallel.config import ParallelDims
from pretrain.parallel.mesh import global_norm, scale_by
from pretrain.stop_signals import STOP_SIGNALS
from pretrain.training.config import OnSpike
from pretrain.training.datamodule import TextDataModule
from pretrain.training.divergence import Rewind, Spikes, named, outlier_sequences, stop
from pretrain.training.run_length import RunLength
from pretrain.training.validation_metrics import ValidationScores

MAX_SKIPPED_IN_A_ROW = 10


NO_TARGET = "no token of the step's rows was to be predicted"


@dataclass(frozen=True)
class StepSettings:
    """What the steps of a run need to know beside the model."""

    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    parallel_dims: ParallelDims
    clip_norm: float  # 0: no clipping
    expected_targets: float  # of a global batch, about: keeps gradients near their final scale
    sum_dtype: torch.dtype  # of summed losses
    keeps_ledger: bool
    materialize: Callable[[DeviceMesh | None, torch.device], None]  # gives the model its weights, on device and mesh


@dataclass(frozen=True)
class StepTotals:
    """What all ranks together trained on in one optimizer step."""

    targets: Tensor  # int64 (): tokens or labels to predict in the global batch


class TrainingModule(L.LightningModule):
    """Trains a learner with gradients of the mean over every target of the global batch."""

    def __init__(
        self,
        model_with_loss: ModelWithLoss,
        settings: StepSettings,
        length: RunLength,
        spikes: Spikes,
        validation: ValidationScores,
    ) -> None:
        super().__init__()
        self.model_with_loss = model_with_loss
        self.settings = settings
        self.parallel_dims = settings.parallel_dims
        self.length = length
        self.spikes = spikes
        self.validation = validation
        self.expected_targets = settings.expected_targets
        self.signal_received = 0  # by this process
        self.signal_agreed = 0  # by all processes, at the latest reduction
        self._signal_reduction: tuple[Any, Tensor] | None = None  # all-reduce of signals that is under way
        self._ready = False
        self.validated: dict[str, float] = {}  # figures of the latest validation; empty without a target
        self.validation_targets: dict[str, int] = {}  # of the latest validation, by source
        self.validated_at: int | None = None  # step of the latest validation
        self.first_validated: dict[str, float] = {}  # figures before the first step, if it was validated
        self.grad_norm = torch.zeros(())  # of the latest step, before clipping
        self.gradient_hook: Callable[[Tensor], None] | None = None  # called with the scale of the mean gradient
        self.skipped_steps = 0
        self.skipped_because = ""  # reason of the latest skipped step
        self._skipped_in_a_row = 0
        self.step_loss = math.nan  # of the latest step, over all processes; computed for spikes and ledger only
        self.step_samples: list[int] = []  # sample indices of the latest step, for the ledger only
        self._step_targets = torch.zeros((), dtype=torch.int64)
        self._step_loss_sum = torch.zeros((), dtype=settings.sum_dtype)
        self._logged_loss = torch.zeros((), dtype=settings.sum_dtype)
        self._logged_targets = torch.zeros((), dtype=torch.int64)
        self._samples: list[Tensor] = []

    def counters(self) -> dict[str, Any]:
        """Return what the module has counted; `state_dict` holds its weights."""
        return {"skipped_steps": self.skipped_steps, "first_validation": self.first_validated}

    def load_counters(self, state: dict[str, Any]) -> None:
        """Continue from the counters of `state`."""
        self.skipped_steps = int(state.get("skipped_steps", 0))
        self.first_validated = dict(state.get("first_validation", {}))

    def configure_model(self) -> None:
        """Spread the model over the devices and give it its weights, once."""
        if not self._ready:
            self.settings.materialize(self.device_mesh, self.trainer.strategy.root_device)
            self._ready = True

    def on_train_start(self) -> None:
        """Start the clock of the run."""
        self.length.start()

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Return this micro-batch's part of the loss, for Lightning to differentiate.

        It is the sum over targets divided by a constant; `optimizer_step` divides by the true count of the global batch
        once that is known. Causal or masked is the objective's business: nothing here may ask which.
        """
        loss_sum, count = self.model_with_loss(batch)
        self._step_targets = self._step_targets.to(count.device) + count
        self._step_loss_sum = self._step_loss_sum.to(loss_sum.device) + loss_sum.detach()
        self._samples.append(batch.sample_indices)
        return loss_sum * (self.trainer.accumulate_grad_batches / self.expected_targets)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer; the learning rate is a function of the run's place and needs no scheduler object."""
        optimizer = self.settings.optimizer.build(self.model_with_loss.model)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return optimizer

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Take one optimizer step, or skip it: everything between the last micro-batch and the next step's first.

        A skipped step advances `global_step`, the schedule and the batch-end hooks like any other.
        """
        assert optimizer_closure is not None
        optimizer_closure()  # the last micro-batch: the earlier ones ran before this hook
        totals = self.reduce_step_totals()
        self.set_learning_rate(optimizer)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        scale = self.measure_gradients(gradients, totals.targets)
        if reason := self.reason_to_skip(totals):
            self.skip_step(reason)
        else:
            self.average_and_clip(gradients, scale)
            self.count_step(totals)
            optimizer.step()  # Lightning's own: on_before_optimizer_step fires, and sees averaged, clipped gradients
        optimizer.optimizer.zero_grad(set_to_none=True)
        self.end_step()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Do nothing at the start of a step: `optimizer_step` has freed the gradients of the step before."""

    def reduce_step_totals(self) -> StepTotals:
        """Sum the step's targets and loss over all ranks, and agree on a stop signal and the run's clock.

        One all-reduce serves all four; rank 0's clock counts.
        """
        seconds, loss_sum, targets = self.length.clock(), self._step_loss_sum, self._step_targets
        if self.trainer.world_size == 1:
            self.signal_agreed = self.signal_received
        else:
            signals = [int(self.signal_received == number) for number in STOP_SIGNALS]
            clock = int(seconds * 1000) if self.trainer.is_global_zero else 0
            device = targets.device
            sums = torch.stack([targets.double(), loss_sum.to(device)]) * self._is_tp_rank_zero()
            # float64 holds whole numbers below 2^53 exactly
            sums = torch.cat([sums, torch.tensor([*signals, clock], device=device, dtype=sums.dtype)])
            torch.distributed.all_reduce(sums)
            targets, loss_sum = sums[0].long(), sums[1]
            *counts, clock = sums[2:].long().tolist()
            self.signal_agreed = _first_signal(counts)
            seconds = clock / 1000
        self.length.record_step(seconds)
        if self.spikes.watches or self.settings.keeps_ledger:  # waits for the device
            count = int(targets)
            self.step_loss = float(loss_sum) / count if count else math.nan
        return StepTotals(targets)

    def set_learning_rate(self, optimizer: Any) -> None:
        """Set this step's learning rate, and have the trainer stop after this step where it is the last."""
        step = self.global_step
        multiplier = self.settings.schedule.lr_multiplier(step, self.length.planned_steps(step))
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * multiplier
        if self.length.is_last_step(step):
            self.trainer.fit_loop.epoch_loop.max_steps = step + 1

    def measure_gradients(self, gradients: list[Tensor], targets: Tensor) -> Tensor:
        """Set `grad_norm`, and return the factor that makes the gradients a mean over the global batch's targets.

        DDP and FSDP2 have averaged them over the data ranks; each micro-batch divided by `expected_targets`.
        """
        scale = self.expected_targets * self.parallel_dims.data_ranks / targets.clamp(min=1).float()
        self.grad_norm = global_norm(gradients) * scale
        if self.gradient_hook is not None:
            self.gradient_hook(scale)
        return scale

    def reason_to_skip(self, totals: StepTotals) -> str:
        """Return why this step must not change the weights; empty where it may.

        Raises Rewind or DivergenceError where the loss jumped and the settings do not ask to skip the step.
        """
        if not bool(torch.isfinite(self.grad_norm)):  # waits for the device
            return "the gradient was not finite"
        if not int(totals.targets):
            return NO_TARGET
        if self.spikes.is_spike(self.step_loss):
            self._handle_spike()
            return "the loss jumped"
        return ""

    def average_and_clip(self, gradients: list[Tensor], scale: Tensor) -> None:
        """Multiply the gradients by `scale`, and clip their norm, in one pass over them."""
        if self.settings.clip_norm:
            scale = scale * (self.settings.clip_norm / (self.grad_norm + 1e-6)).clamp(max=1.0)
        scale_by(gradients, scale)

    def count_step(self, totals: StepTotals) -> None:
        """Add a step that changes the weights to the training loss that is logged next."""
        self._skipped_in_a_row = 0
        self._logged_loss = self._logged_loss.to(self._step_loss_sum.device) + self._step_loss_sum
        self._logged_targets = self._logged_targets.to(totals.targets.device) + totals.targets

    def agree_on_signal(self) -> None:
        """Set `signal_agreed` between two steps; all processes take part."""
        self.start_signal_reduction()
        self.finish_signal_reduction()

    def start_signal_reduction(self) -> None:
        """Start to reduce the stop signals over all processes, without waiting."""
        if self.trainer.world_size == 1:
            self.signal_agreed = self.signal_received
            return
        counts = torch.tensor([int(self.signal_received == number) for number in STOP_SIGNALS], device=self.device)
        self._signal_reduction = torch.distributed.all_reduce(counts, async_op=True), counts

    def finish_signal_reduction(self) -> None:
        """Wait for the reduction that `start_signal_reduction` started, if any, and set `signal_agreed`."""
        if self._signal_reduction is None:
            return
        (work, counts), self._signal_reduction = self._signal_reduction, None
        work.wait()
        self.signal_agreed = _first_signal(counts.tolist())

    def _handle_spike(self) -> None:
        """Raise what the settings ask for at a spike: Rewind, or DivergenceError; where it is only skipped, return."""
        if self.spikes.on_spike is OnSpike.skip:
            return
        data: TextDataModule = self.trainer.datamodule
        samples = torch.cat(self._samples).cpu().numpy()
        rows = outlier_sequences(
            self.model_with_loss, data, samples, self.spikes.deviations, self.parallel_dims, self.global_rank
        )
        step = self.global_step + 1
        what = self.spikes.describe(step, self.step_loss)
        new = frozenset(rows) - data.excluded
        if self.spikes.on_spike is OnSpike.rewind and new:
            raise Rewind(f"{what}; leaving out rows {named(new)}", step, data.excluded | new, self.length.clock())
        raise stop(what, rows)

    def skip_step(self, reason: str) -> None:
        """Count a step that leaves the weights alone.

        Raises DataError or DivergenceError after MAX_SKIPPED_IN_A_ROW of them in a row.
        """
        self.skipped_steps += 1
        self.skipped_because = reason
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            data: TextDataModule = self.trainer.datamodule
            rows = data.train_stream.row_origins(self._all_samples().cpu().numpy())
            what = (
                f"{reason} in {MAX_SKIPPED_IN_A_ROW} steps in a row, up to step {self.global_step + 1}; the last of "
                f"them read rows {named(row.id for row in rows)}. "
            )
            if reason == NO_TARGET:
                raise DataError(f"{what}Look at them: python src/prepare.py inspect run=<run folder> step=1.")
            raise DivergenceError(f"{what}Try a lower optimizer.learning_rate, then resume=auto.")

    def end_step(self) -> None:
        """Start the sums of the next step, and keep the sample indices of this one where the ledger needs them."""
        self._step_targets = torch.zeros_like(self._step_targets)
        self._step_loss_sum = torch.zeros_like(self._step_loss_sum)
        if self.settings.keeps_ledger:
            self.step_samples = sorted(self._all_samples().tolist())
        self._samples.clear()

    def _all_samples(self) -> Tensor:
        """Return the places of the rows that all processes read in this step, int64 (batch_size,)."""
        own = torch.cat(self._samples)
        if self.trainer.world_size == 1:
            return own
        found = [torch.empty_like(own) for _ in range(self.trainer.world_size)]
        torch.distributed.all_gather(found, own)
        return torch.cat(found[:: self.parallel_dims.tensor])

    def _is_tp_rank_zero(self) -> bool:
        """Whether this process adds what it found to the sum over all: of those that read the same rows, one does."""
        return self.parallel_dims.is_tp_rank_zero(self.global_rank)

    def learning_rate(self) -> float:
        """Return the learning rate of the newest step, of the first group of parameters."""
        optimizer = self.optimizers()
        assert isinstance(optimizer, Optimizer)
        return float(optimizer.param_groups[0]["lr"])

    def take_training_loss(self) -> float | None:
        """Return the mean loss in nats per target since the last call; this waits for the device.

        None where every step since then was skipped.
        """
        if self.trainer.world_size > 1:
            self._logged_loss *= self._is_tp_rank_zero()
            torch.distributed.all_reduce(self._logged_loss)
        targets = int(self._logged_targets)
        loss = float(self._logged_loss) / targets if targets else None
        self._logged_loss.zero_()
        self._logged_targets.zero_()
        return loss

    def validation_step(self, batch: Batch, batch_index: int, dataloader_idx: int = 0) -> None:
        """Score one batch of validation rows; each source has its own loader."""
        losses, predictions = self.model_with_loss.evaluate(batch)
        self.validation.update(dataloader_idx, batch, losses, predictions)

    def on_validation_epoch_end(self) -> None:
        """Keep and log the figures of this validation: of all rows scored, then of each part and source."""
        self.validated, self.validation_targets = self.validation.compute()
        self.validated_at = self.trainer.global_step
        if self.validated:  # for callbacks that monitor a figure: ours and the loggers read `validated`
            self.log_dict(self.validated, logger=False, sync_dist=self.trainer.world_size > 1)
        if self.trainer.sanity_checking and not self.validated_at:  # Lightning's name for one before the first step
            self.first_validated = self.validated


def _first_signal(counts: list[int]) -> int:
    """Return the first of STOP_SIGNALS that any process received, 0 if none did; `counts` are in their order."""
    return next((number for number, count in zip(STOP_SIGNALS, counts, strict=True) if count), 0)
