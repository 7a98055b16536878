"""The LightningModule: one training step, the same for every model and objective."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer

from pretrain.errors import DataError, DivergenceError
from pretrain.launch.rank import log, rank
from pretrain.objectives.batch import Batch
from pretrain.objectives.objective import ModelWithLoss
from pretrain.optim.config import OptimizerConfig
from pretrain.optim.groups import group_table
from pretrain.optim.schedules import ScheduleConfig
from pretrain.optim.skipped_steps import skips_on_device
from pretrain.parallel.config import ParallelDims
from pretrain.parallel.mesh import global_norm, scale_by
from pretrain.program import command
from pretrain.training.agreement import Agreement
from pretrain.training.config import OnSpike
from pretrain.training.datamodule import TextDataModule
from pretrain.training.divergence import LOWER_RATE, Rewind, Spikes, named, outlier_sequences, spike_error
from pretrain.training.graphs import MicroBatchGraphs, capture_on
from pretrain.training.loss_scaler import LossScaler
from pretrain.training.run_length import RunLength
from pretrain.training.run_state import end_after_step
from pretrain.training.step_outcomes import NO_TARGET, NOT_FINITE, OVERFLOW, SPIKE, StepOutcome, StepOutcomes
from pretrain.training.validation_metrics import ValidationScores
from pretrain.training.weight_average import WeightAverage

MAX_SKIPPED_IN_A_ROW = 10


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
    timeout: timedelta  # of a process's wait for the others
    loss_scaler: LossScaler | None  # of fp16
    materialize: Callable[[DeviceMesh | None, torch.device], None]  # loads the model's weights onto device and mesh
    average: WeightAverage | None = None  # of the weights, with ema.decay
    uses_graphs: bool = False  # forward and backward pass of a micro-batch are one CUDA graph


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
        self.outcomes = StepOutcomes()
        self.outcomes.listeners.append(self.count_outcome)
        self._agreement: Agreement | None = None  # from `configure_model` on
        self._graphs: MicroBatchGraphs | None = None  # from `configure_model` on, with `uses_graphs`
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
        self._step_targets = torch.zeros((), dtype=torch.int64)
        self._step_loss_sum = torch.zeros((), dtype=settings.sum_dtype)
        self._logged_loss = torch.zeros((), dtype=settings.sum_dtype)
        self._logged_targets = torch.zeros((), dtype=torch.int64)
        self._samples: list[Tensor] = []

    def counters(self) -> dict[str, Any]:
        """Return the module's counters, the same on every process; `state_dict` holds its weights."""
        loss, targets = self._sum_since_last_line()
        logged = {"logged_loss": loss, "logged_targets": targets}
        scaler = {} if self.loss_scaler is None else self.loss_scaler.state_dict()
        return {"skipped_steps": self.skipped_steps, "first_validation": self.first_validated, **logged, **scaler}

    def load_counters(self, state: dict[str, Any]) -> None:
        """Continue from the counters of `state`."""
        self.skipped_steps = int(state.get("skipped_steps", 0))
        self.first_validated = dict(state.get("first_validation", {}))
        if rank() == 0:  # it is a sum over all
            self._logged_loss += float(state.get("logged_loss", 0.0))
        self._logged_targets += int(state.get("logged_targets", 0))
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
            self._agreement = Agreement(self.global_rank, self.trainer.world_size, self.settings.timeout)
            if self.settings.uses_graphs:
                self._graphs = MicroBatchGraphs(self.train_micro_batch, capture_on(strategy.root_device))
            self._is_materialized = True

    def on_train_start(self) -> None:
        """Start the clock of the run."""
        self.length.start()

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Return this micro-batch's part of the loss, a scalar for Lightning to differentiate.

        The loss is summed over targets and divided by a constant; `optimizer_step` then divides by the true number of
        targets in the global batch, and by the loss scale. The code is the same for every objective.
        """
        if not self._samples:  # the first of a step
            self._refresh_half_copies()
        loss_sum, count = self.model_with_loss(batch) if self._graphs is None else self._graphs(batch)
        self._step_targets = self._step_targets.to(count.device) + count
        self._step_loss_sum = self._step_loss_sum.to(loss_sum.device) + loss_sum.detach()
        self._samples.append(batch.sample_indices)
        return loss_sum * self._loss_factor()

    def train_micro_batch(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Run both passes of a micro-batch: return its summed loss and targets, detached, and add to the gradients."""
        loss_sum, count = self.model_with_loss(batch)
        # Lightning divides the loss by the micro-batches of a step before the backward pass, which no autocast is for
        with torch.autocast(loss_sum.device.type, enabled=False):
            (loss_sum * self._loss_factor() / self.trainer.accumulate_grad_batches).backward()
        return loss_sum.detach(), count

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run the backward pass of a micro-batch, unless its graph has done so."""
        if self._graphs is None:
            super().backward(loss, *args, **kwargs)

    def _loss_factor(self) -> float:
        """Return what the summed loss of a micro-batch is multiplied by."""
        return self.loss_scale * self.trainer.accumulate_grad_batches / self.expected_targets

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
        """Run the last micro-batch, then take one optimizer step or skip it, without waiting for the device.

        A skipped step advances `global_step`, the schedule and the batch-end hooks like any other. Without targets or a
        finite gradient the device leaves the weights alone, and `outcomes` hand that over a step later.
        """
        assert optimizer_closure is not None
        optimizer_closure()  # the last micro-batch; Lightning has run the earlier ones before this hook
        targets, loss_sum = self.reduce_step_totals()
        self.set_learning_rate(optimizer)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        scale = self.measure_gradients(gradients, targets)
        applies = torch.isfinite(self.grad_norm) & (targets > 0)
        reason = self.reason_to_skip(applies, targets, loss_sum)
        if not reason:
            self.average_and_clip(gradients, scale)
            self.add_to_logged_loss(applies, targets)
            self.update_weights(optimizer, applies)
        optimizer.optimizer.zero_grad(set_to_none=self._graphs is None)  # a graph adds to the same tensors
        self.end_step(reason, torch.stack([applies.to(loss_sum), targets.to(loss_sum), loss_sum]))

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Do nothing: `optimizer_step` has freed or emptied the gradients of the previous step."""

    def reduce_step_totals(self) -> tuple[Tensor, Tensor]:
        """Return the targets of the global batch, int64 (), and their summed loss (); agree on signals and the clock.

        Signals and clock go through CPU memory: reading them waits for the other processes, and not for their devices.
        """
        assert self._agreement is not None
        self._agreement.start(self.signal_received, self.length.clock())
        targets, loss_sum = self._step_targets, self._step_loss_sum
        if self.trainer.world_size > 1:
            # float64 is exact for integers below 2^53
            sums = torch.stack([targets.double(), loss_sum.to(targets.device)]) * self._is_tp_rank_zero()
            torch.distributed.all_reduce(sums)
            targets, loss_sum = sums[0].long(), sums[1]
        self.signal_agreed, seconds = self._agreement.finish()
        self.length.record_step(seconds)
        return targets, loss_sum

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

    def reason_to_skip(self, applies: Tensor, targets: Tensor, loss_sum: Tensor) -> str:
        """Return why this step must not change the weights; empty if it may, or if the device decides by `applies` ().

        Waits for the device in fp16, whose next loss scale depends on the gradient, and where spikes are looked for.
        Raises Rewind or DivergenceError at a spike, unless `divergence.on_spike` is ignore or skip.
        """
        if self.loss_scaler is None and not self.spikes.is_on:
            return ""
        if not bool(applies):
            if bool(torch.isfinite(self.grad_norm)):
                return NO_TARGET
            return OVERFLOW if self._lower_loss_scale(loss_sum) else NOT_FINITE
        if self.spikes.is_on and self.spikes.is_spike(loss := float(loss_sum) / int(targets)):
            self._handle_spike(loss)
            return SPIKE
        if self.loss_scaler is not None:
            self.loss_scaler.count_step()
        return ""

    def update_weights(self, optimizer: Any, applies: Tensor) -> None:
        """Take the optimizer step if `applies` () is true; the device decides where the optimizer can skip by itself.

        `optimizer` is Lightning's own: on_before_optimizer_step fires, with averaged, clipped gradients.
        """
        if skips_on_device(optimizer.optimizer):
            device = optimizer.param_groups[0]["params"][0].device  # the CPU, with parallel.cpu_offload
            optimizer.optimizer.found_inf = (~applies).float().to(device)
        elif not bool(applies):  # waits for the device
            return
        optimizer.step()
        if self.average is not None:
            self.average.update(applies)

    def average_and_clip(self, gradients: list[Tensor], scale: Tensor) -> None:
        """Multiply the gradients by `scale` and clip their norm, in one pass over them."""
        if self.settings.clip_norm:
            scale = scale * (self.settings.clip_norm / (self.grad_norm + 1e-6)).clamp(max=1.0)
        scale_by(gradients, scale)

    def add_to_logged_loss(self, applies: Tensor, targets: Tensor) -> None:
        """Add a step to the next logged training loss if it changes the weights."""
        loss_sum = torch.where(applies, self._step_loss_sum, 0.0)
        self._logged_loss = self._logged_loss.to(loss_sum.device) + loss_sum
        self._logged_targets = self._logged_targets.to(targets.device) + targets * applies

    def _lower_loss_scale(self, loss_sum: Tensor) -> bool:
        """Halve the loss scale if that may make the gradient finite; return whether it did.

        It cannot if the loss itself is not finite, or the scale is at its lowest. Loss and gradient norm are those of
        all processes, so all decide alike.
        """
        if self.loss_scaler is None or not bool(torch.isfinite(loss_sum)):
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
        """Start to agree on stop signals, without waiting for the other processes."""
        assert self._agreement is not None
        self._agreement.start(self.signal_received, 0.0)
        if not self._agreement.is_pending:  # one process
            self.signal_agreed = self.signal_received

    def finish_signal_reduction(self) -> None:
        """Wait for the other processes if `start_signal_reduction` was called, and set `signal_agreed`."""
        if self._agreement is not None and self._agreement.is_pending:
            self.signal_agreed, _ = self._agreement.finish()

    def _handle_spike(self, loss: float) -> None:
        """Raise Rewind or DivergenceError at a spike, as `divergence.on_spike` asks; return if it is skip."""
        if self.spikes.on_spike is OnSpike.skip:
            return
        self.outcomes.settle()
        data: TextDataModule = self.trainer.datamodule
        samples = torch.cat(self._samples).numpy()
        rows = outlier_sequences(self.model_with_loss, data, samples, self.spikes.deviations, self.parallel_dims)
        step = self.global_step + 1
        description = self.spikes.describe(step, loss)
        new = frozenset(rows) - data.excluded
        if self.spikes.on_spike is OnSpike.rewind and new:
            message = f"{description}; excluding rows {named(new)}"
            raise Rewind(message, step, data.excluded | new, self.length.clock())
        raise spike_error(description, rows, self.spikes.on_spike)

    def count_outcome(self, outcome: StepOutcome) -> None:
        """Count a step that did not change the weights.

        Raises DataError or DivergenceError after MAX_SKIPPED_IN_A_ROW consecutive ones; a step that lowered the loss
        scale is none of them, as the next may fit.
        """
        if not (reason := outcome.skipped_because):
            self._skipped_in_a_row = 0
            return
        self.skipped_steps += 1
        self.skipped_because = reason
        if reason == OVERFLOW:
            return
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            data: TextDataModule = self.trainer.datamodule
            samples = outcome.samples if self.settings.keeps_ledger else self._of_all_processes(outcome.samples)
            rows = data.train_stream.row_origins(samples.numpy())
            description = (
                f"{MAX_SKIPPED_IN_A_ROW} steps in a row were skipped, up to step {outcome.step}: {reason}. "
                f"The last one read rows {named(row.id for row in rows)}. "
            )
            if reason == NO_TARGET:
                raise DataError(f"{description}Look at them: {command('inspect')} run=<run folder> step=1.")
            advice = f"resume=auto with {LOWER_RATE}."
            if self.loss_scaler is not None:
                advice += " Or start anew with trainer.precision=fp32: fp16 has no number above 65,504."
            raise DivergenceError(f"{description}Try {advice}")

    def end_step(self, skipped_because: str, numbers: Tensor) -> None:
        """Post the outcome of the step, which hands over that of the step before; reset the sums of the step."""
        self._step_targets = torch.zeros_like(self._step_targets)
        self._step_loss_sum = torch.zeros_like(self._step_loss_sum)
        samples = torch.cat(self._samples)
        self._samples.clear()
        if self.settings.keeps_ledger:
            samples = self._of_all_processes(samples)
        self.outcomes.post(self.global_step + 1, skipped_because, numbers, samples)

    def on_validation_start(self) -> None:
        """Count every step before a validation."""
        self.outcomes.settle()

    def on_validation_epoch_start(self) -> None:
        """Validate the weights as they are now: a callback may have swapped them for a validation."""
        self._refresh_half_copies()

    def _refresh_half_copies(self) -> None:
        if self.model_with_loss.half_copies is not None:
            self.model_with_loss.half_copies.refresh()

    def on_train_end(self) -> None:
        """Count the last step."""
        self.outcomes.settle()

    def _of_all_processes(self, samples: Tensor) -> Tensor:
        """Return the sample indices of a step over all processes, int64 (batch_size,); a collective call."""
        assert self._agreement is not None
        return torch.cat(self._agreement.gather(samples)[:: self.parallel_dims.same_rows])

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
        loss, targets = self._sum_since_last_line()
        self._logged_loss.zero_()
        self._logged_targets.zero_()
        return loss / targets if targets else None

    def _sum_since_last_line(self) -> tuple[float, int]:
        """Return sum and number of the losses of all processes since the last logged loss."""
        loss = self._logged_loss
        if self._agreement is not None and self.trainer.world_size > 1:
            loss = loss.to(self.trainer.strategy.root_device) * self._is_tp_rank_zero()
            torch.distributed.all_reduce(loss)
        return float(loss), int(self._logged_targets)

    def validation_step(self, batch: Batch, batch_index: int, dataloader_idx: int = 0) -> None:
        """Evaluate one batch of validation rows; each source has its own loader."""
        losses, predictions = self.model_with_loss.evaluate(batch)
        self.validation.update(dataloader_idx, batch, losses, predictions)
        if self.average is not None:
            self.average.validate(dataloader_idx, batch)

    def on_validation_epoch_end(self) -> None:
        """Compute and log the metrics of this validation: of all rows, then of each part and source."""
        self.validated, self.validation_targets = self.validation.compute(self.parallel_dims.same_rows)
        if self.average is not None:
            self.validated |= self.average.validated()
        self.validated_at = self.trainer.global_step
        if self.validated:  # for callbacks that monitor a metric; ours and the loggers read `validated`
            self.log_dict(self.validated, logger=False, sync_dist=self.trainer.world_size > 1)
        if self.trainer.sanity_checking and not self.validated_at:  # Lightning's name for the one before the first step
            self.first_validated = self.validated
