"""The LightningModule: one training step, the same for every model and objective."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer

from pretrain.errors import DataError, DivergenceError
from pretrain.launch.rank import log
from pretrain.objectives.batch import Batch
from pretrain.objectives.objective import ModelWithLoss
from pretrain.optim.config import OptimizerConfig
from pretrain.optim.groups import group_table
from pretrain.optim.schedules import ScheduleConfig
from pretrain.parallel.config import ParallelDims
from pretrain.parallel.mesh import global_norm, scale_by
from pretrain.program import command
from pretrain.stop_signals import STOP_SIGNALS
from pretrain.training.config import OnSpike
from pretrain.training.datamodule import TextDataModule
from pretrain.training.divergence import Rewind, Spikes, named, outlier_sequences, spike_error
from pretrain.training.loss_scaler import LossScaler
from pretrain.training.run_length import RunLength
from pretrain.training.run_state import end_after_step
from pretrain.training.validation_metrics import ValidationScores
from pretrain.training.weight_average import WeightAverage

MAX_SKIPPED_IN_A_ROW = 10
NO_TARGET = "the step's rows had no target token"
OVERFLOW = "the gradient overflowed fp16"


@dataclass(frozen=True)
class StepSettings:
    """Settings of a run's optimizer steps."""

    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    parallel_dims: ParallelDims
    clip_norm: float  # 0: no clipping
    expected_targets: float  # approximate number in a global batch: keeps gradients near their final scale
    sum_dtype: torch.dtype  # of summed losses
    keeps_ledger: bool
    loss_scaler: LossScaler | None  # of fp16
    materialize: Callable[[DeviceMesh | None, torch.device], None]  # loads the model's weights onto device and mesh
    average: WeightAverage | None = None  # of the weights, with ema.decay


class TrainingModule(L.LightningModule):
    """Trains a model on the gradient of the mean loss over all targets of the global batch."""

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
        self.loss_scaler = settings.loss_scaler
        self.average = settings.average
        self.average_scores = None if settings.average is None else settings.average.scores  # moved with this module
        self.length = length
        self.spikes = spikes
        self.validation = validation
        self.expected_targets = settings.expected_targets
        self.signal_received = 0  # by this process
        self.signal_agreed = 0  # by all processes, at the latest reduction
        self._signal_reduction: tuple[Any, Tensor] | None = None  # pending all-reduce of signals
        self._is_materialized = False
        self.validated: dict[str, float] = {}  # metrics of the latest validation; empty without targets
        self.validation_targets: dict[str, int] = {}  # of the latest validation, by source
        self.validated_at: int | None = None  # step of the latest validation
        self.first_validated: dict[str, float] = {}  # metrics before the first step, with trainer.validate_first
        self.grad_norm = torch.zeros(())  # of the latest step, before clipping
        self.gradient_hook: Callable[[Tensor], None] | None = None  # called with the scale of the mean gradient
        self.skipped_steps = 0
        self.skipped_because = ""  # reason of the latest skipped step
        self._skipped_in_a_row = 0
        self.step_loss = math.nan  # of the latest step, over all processes; computed for spikes and ledger only
        self.step_samples: list[int] = []  # sample indices of the latest step, for the ledger only
        self._step_targets = torch.zeros((), dtype=torch.int64)
        self._step_loss_sum = torch.zeros((), dtype=settings.sum_dtype)
        self._global_loss_sum = self._step_loss_sum  # of the latest step, over all processes
        self._logged_loss = torch.zeros((), dtype=settings.sum_dtype)
        self._logged_targets = torch.zeros((), dtype=torch.int64)
        self._samples: list[Tensor] = []

    def counters(self) -> dict[str, Any]:
        """Return the module's counters; `state_dict` holds its weights."""
        scaler = {} if self.loss_scaler is None else self.loss_scaler.state_dict()
        return {"skipped_steps": self.skipped_steps, "first_validation": self.first_validated, **scaler}

    def load_counters(self, state: dict[str, Any]) -> None:
        """Continue from the counters of `state`."""
        self.skipped_steps = int(state.get("skipped_steps", 0))
        self.first_validated = dict(state.get("first_validation", {}))
        if self.loss_scaler is not None:
            self.loss_scaler.load_state_dict(state)

    @property
    def loss_scale(self) -> float:
        """Factor of losses and gradients in the backward pass: of fp16, else 1."""
        return 1.0 if self.loss_scaler is None else self.loss_scaler.scale

    def configure_model(self) -> None:
        """Shard the model over the devices and load its weights, once."""
        if not self._is_materialized:
            strategy = self.trainer.strategy
            mesh = strategy.device_mesh if isinstance(strategy, ModelParallelStrategy) else None
            self.settings.materialize(mesh, strategy.root_device)
            if self.average is not None:
                self.average.materialize(mesh, strategy.root_device, self.model_with_loss)
            self._is_materialized = True

    def on_train_start(self) -> None:
        """Start the clock of the run."""
        self.length.start()

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Return this micro-batch's part of the loss, a scalar for Lightning to differentiate.

        The loss is summed over targets and divided by a constant; `optimizer_step` then divides by the true number of
        targets in the global batch, and by the loss scale. The code is the same for every objective.
        """
        loss_sum, count = self.model_with_loss(batch)
        self._step_targets = self._step_targets.to(count.device) + count
        self._step_loss_sum = self._step_loss_sum.to(loss_sum.device) + loss_sum.detach()
        self._samples.append(batch.sample_indices)
        return loss_sum * (self.loss_scale * self.trainer.accumulate_grad_batches / self.expected_targets)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer; `set_learning_rate` computes the rate of each step, without a scheduler object."""
        optimizer = self.settings.optimizer.build(self.model_with_loss.model)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        if getattr(self.settings.optimizer, "groups", None):
            log("\n".join(["groups of parameters:", *group_table(optimizer, self.model_with_loss.model)]))
        return optimizer

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Run the last micro-batch, then take one optimizer step or skip it.

        A skipped step advances `global_step`, the schedule and the batch-end hooks like any other.
        """
        assert optimizer_closure is not None
        optimizer_closure()  # the last micro-batch; Lightning has run the earlier ones before this hook
        targets = self.reduce_step_totals()
        self.set_learning_rate(optimizer)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        scale = self.measure_gradients(gradients, targets)
        if reason := self.reason_to_skip(targets):
            self.skip_step(reason)
        else:
            self.average_and_clip(gradients, scale)
            self.count_step(targets)
            optimizer.step()  # Lightning's own: on_before_optimizer_step fires, with averaged, clipped gradients
            if self.average is not None:
                self.average.update()
        optimizer.optimizer.zero_grad(set_to_none=True)
        self.end_step()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Do nothing: `optimizer_step` has freed the gradients of the previous step."""

    def reduce_step_totals(self) -> Tensor:
        """Return the targets of the global batch, int64 (); agree on loss, stop signal and the run's clock.

        One all-reduce carries all four; the clock is that of rank 0.
        """
        seconds, loss_sum, targets = self.length.clock(), self._step_loss_sum, self._step_targets
        if self.trainer.world_size == 1:
            self.signal_agreed = self.signal_received
        else:
            signals = [int(self.signal_received == number) for number in STOP_SIGNALS]
            clock = int(seconds * 1000) if self.trainer.is_global_zero else 0
            device = targets.device
            sums = torch.stack([targets.double(), loss_sum.to(device)]) * self._is_tp_rank_zero()
            # float64 is exact for integers below 2^53
            sums = torch.cat([sums, torch.tensor([*signals, clock], device=device, dtype=sums.dtype)])
            torch.distributed.all_reduce(sums)
            targets, loss_sum = sums[0].long(), sums[1]
            *counts, clock = sums[2:].long().tolist()
            self.signal_agreed = _first_signal(counts)
            seconds = clock / 1000
        self.length.record_step(seconds)
        self._global_loss_sum = loss_sum
        if self.spikes.is_on or self.settings.keeps_ledger:  # waits for the device
            count = int(targets)
            self.step_loss = float(loss_sum) / count if count else math.nan
        return targets

    def set_learning_rate(self, optimizer: Any) -> None:
        """Set what this step's optimizer takes from the step; if the step is the last, end the training after it."""
        step = self.global_step
        multiplier = self.settings.schedule.lr_multiplier(*self.length.position(step))
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * multiplier
        self.settings.optimizer.before_step(optimizer, step)
        if self.length.is_last_step(step):
            end_after_step(self.trainer, step)

    def measure_gradients(self, gradients: list[Tensor], targets: Tensor) -> Tensor:
        """Set `grad_norm`; return the factor that makes gradients a mean over the global batch's targets.

        DDP and FSDP2 have averaged them over the gradient ranks, and each micro-batch was divided by
        `expected_targets` and multiplied by the loss scale.
        """
        divided = self.expected_targets * self.parallel_dims.gradient_ranks
        scale = divided / self.loss_scale / targets.clamp(min=1).float()
        self.grad_norm = global_norm(gradients) * scale
        if self.gradient_hook is not None:
            self.gradient_hook(scale)
        return scale

    def reason_to_skip(self, targets: Tensor) -> str:
        """Return why this step must not change the weights; empty if it may.

        Raises Rewind or DivergenceError at a loss spike, unless `divergence.on_spike` is ignore or skip.
        """
        if not bool(torch.isfinite(self.grad_norm)):  # waits for the device
            return OVERFLOW if self._lower_loss_scale() else "the gradient was not finite"
        if not int(targets):
            return NO_TARGET
        if self.spikes.is_spike(self.step_loss):
            self._handle_spike()
            return "the loss jumped"
        return ""

    def average_and_clip(self, gradients: list[Tensor], scale: Tensor) -> None:
        """Multiply the gradients by `scale` and clip their norm, in one pass over them."""
        if self.settings.clip_norm:
            scale = scale * (self.settings.clip_norm / (self.grad_norm + 1e-6)).clamp(max=1.0)
        scale_by(gradients, scale)

    def count_step(self, targets: Tensor) -> None:
        """Add a step that changes the weights to the next logged training loss."""
        self._skipped_in_a_row = 0
        if self.loss_scaler is not None:
            self.loss_scaler.count_step()
        self._logged_loss = self._logged_loss.to(self._step_loss_sum.device) + self._step_loss_sum
        self._logged_targets = self._logged_targets.to(targets.device) + targets

    def _lower_loss_scale(self) -> bool:
        """Halve the loss scale if that may make the gradient finite; return whether it did.

        It cannot if the loss itself is not finite, or the scale is at its lowest. Loss and gradient norm are those of
        all processes, so all decide alike.
        """
        if self.loss_scaler is None or not bool(torch.isfinite(self._global_loss_sum)):
            return False
        before = self.loss_scale
        if lowered := self.loss_scaler.lower():
            change = f"loss scale {before:,.0f} before, {self.loss_scale:,.0f} from here on"
            log(f"step {self.global_step + 1} is skipped, as {OVERFLOW}: {change}")
        return lowered

    def agree_on_signal(self) -> None:
        """Set `signal_agreed` between two steps; a collective call."""
        self.start_signal_reduction()
        self.finish_signal_reduction()

    def start_signal_reduction(self) -> None:
        """Start the all-reduce of stop signals, without waiting for it."""
        if self.trainer.world_size == 1:
            self.signal_agreed = self.signal_received
            return
        counts = torch.tensor([int(self.signal_received == number) for number in STOP_SIGNALS], device=self.device)
        self._signal_reduction = torch.distributed.all_reduce(counts, async_op=True), counts

    def finish_signal_reduction(self) -> None:
        """Wait for the pending all-reduce of stop signals, if any, and set `signal_agreed`."""
        if self._signal_reduction is None:
            return
        (work, counts), self._signal_reduction = self._signal_reduction, None
        work.wait()
        self.signal_agreed = _first_signal(counts.tolist())

    def _handle_spike(self) -> None:
        """Raise Rewind or DivergenceError at a spike, as `divergence.on_spike` asks; return if it is skip."""
        if self.spikes.on_spike is OnSpike.skip:
            return
        data: TextDataModule = self.trainer.datamodule
        samples = torch.cat(self._samples).cpu().numpy()
        rows = outlier_sequences(self.model_with_loss, data, samples, self.spikes.deviations, self.parallel_dims)
        step = self.global_step + 1
        description = self.spikes.describe(step, self.step_loss)
        new = frozenset(rows) - data.excluded
        if self.spikes.on_spike is OnSpike.rewind and new:
            message = f"{description}; excluding rows {named(new)}"
            raise Rewind(message, step, data.excluded | new, self.length.clock())
        raise spike_error(description, rows)

    def skip_step(self, reason: str) -> None:
        """Count a step that does not change the weights.

        Raises DataError or DivergenceError after MAX_SKIPPED_IN_A_ROW consecutive ones; a step that lowered the loss
        scale is none of them, as the next may fit.
        """
        self.skipped_steps += 1
        self.skipped_because = reason
        if reason == OVERFLOW:
            return
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            data: TextDataModule = self.trainer.datamodule
            rows = data.train_stream.row_origins(self._all_samples().cpu().numpy())
            description = (
                f"{MAX_SKIPPED_IN_A_ROW} steps in a row were skipped, up to step {self.global_step + 1}: {reason}. "
                f"The last one read rows {named(row.id for row in rows)}. "
            )
            if reason == NO_TARGET:
                raise DataError(f"{description}Look at them: {command('inspect')} run=<run folder> step=1.")
            advice = "a lower optimizer.learning_rate, then resume=auto."
            if self.loss_scaler is not None:
                advice += " Or start anew with trainer.precision=fp32: fp16 has no number above 65,504."
            raise DivergenceError(f"{description}Try {advice}")

    def end_step(self) -> None:
        """Reset the sums of the step; keep its sample indices if the ledger needs them."""
        self._step_targets = torch.zeros_like(self._step_targets)
        self._step_loss_sum = torch.zeros_like(self._step_loss_sum)
        if self.settings.keeps_ledger:
            self.step_samples = sorted(self._all_samples().tolist())
        self._samples.clear()

    def _all_samples(self) -> Tensor:
        """Return the sample indices of this step over all processes, int64 (batch_size,)."""
        samples = torch.cat(self._samples)
        if self.trainer.world_size == 1:
            return samples
        gathered = [torch.empty_like(samples) for _ in range(self.trainer.world_size)]
        torch.distributed.all_gather(gathered, samples)
        return torch.cat(gathered[:: self.parallel_dims.same_rows])

    def _is_tp_rank_zero(self) -> bool:
        """Return whether this process contributes to sums: ranks of one tensor-parallel group have the same losses."""
        return self.parallel_dims.is_tp_rank_zero(self.global_rank)

    def learning_rate(self) -> float:
        """Return the learning rate of the latest step, of the first parameter group."""
        optimizer = self.optimizers()
        assert isinstance(optimizer, Optimizer)
        return float(optimizer.param_groups[0]["lr"])

    def take_training_loss(self) -> float | None:
        """Return the mean loss since the last call, in nats per target; this waits for the device.

        None if every step since then was skipped.
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
        """Evaluate one batch of validation rows; each source has its own loader."""
        losses, predictions = self.model_with_loss.evaluate(batch)
        self.validation.update(dataloader_idx, batch, losses, predictions)
        if self.average is not None:
            self.average.validate(dataloader_idx, batch)

    def on_validation_epoch_end(self) -> None:
        """Compute and log the metrics of this validation: of all rows, then of each part and source."""
        self.validated, self.validation_targets = self.validation.compute()
        if self.average is not None:
            self.validated |= self.average.validated()
        self.validated_at = self.trainer.global_step
        if self.validated:  # for callbacks that monitor a metric; ours and the loggers read `validated`
            self.log_dict(self.validated, logger=False, sync_dist=self.trainer.world_size > 1)
        if self.trainer.sanity_checking and not self.validated_at:  # Lightning's name for the one before the first step
            self.first_validated = self.validated


def _first_signal(counts: list[int]) -> int:
    """Return the first of STOP_SIGNALS with a nonzero count, 0 if none; `counts` are in their order."""
    return next((number for number, count in zip(STOP_SIGNALS, counts, strict=True) if count), 0)
