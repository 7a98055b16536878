"""Check that several processes, or several micro-batches per step, train like one process."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path

from pretrain.doctor.check import CheckResult, NotApplicableError
from pretrain.doctor.context import Context
from pretrain.doctor.runs import figure_difference, figures, in_folder, state_difference, train_here, train_in_processes
from pretrain.doctor.shrink import ROWS, STEPS
from pretrain.errors import ConfigError
from pretrain.parallel.config import ParallelConfig, build_parallel_dims
from pretrain.training.config import Strategy

LOSSES_ALIKE = 1e-5  # largest differences that pass
NORMS_ALIKE = 1e-3  # gradient norms, because Adam's weights do not show a gradient of the wrong scale
WEIGHTS_ALIKE = 1e-4


class SharedRuns:
    """The same small run without dropout: on one process, on two, and with gradient accumulation."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.folder = context.folder / "parallel"

    @cached_property
    def single(self) -> Path:
        """The folder of the run on one process with one micro-batch per step."""
        return train_here(in_folder(self.context.small, self.folder / "single"))

    def accumulation(self) -> CheckResult:
        """Compare two micro-batches per step, with unequal numbers of targets, to one."""
        small = replace(self.context.small, micro_batch_size=ROWS // 2)
        return self._compare(train_here(in_folder(small, self.folder / "accumulation")))

    def ddp(self) -> CheckResult:
        """Compare DDP on two processes to one process."""
        return self._compare(self._two(Strategy.ddp))

    def fsdp(self) -> CheckResult:
        """Compare FSDP2 on two processes to one process."""
        return self._compare(self._two(Strategy.fsdp))

    def tensor(self) -> CheckResult:
        """Compare tensor and sequence parallelism on two processes to one process.

        Raises NotApplicableError if two devices cannot split the model."""
        split = replace(self.context.small.parallel, tensor_parallel=2, sequence_parallel=True)
        trainer = replace(self.context.small.trainer, strategy=Strategy.fsdp, devices=2)
        try:
            build_parallel_dims(split, trainer, self.context.shape)
        except ConfigError as error:
            raise NotApplicableError(f"two devices cannot split this model: {error}") from error
        return self._compare(self._two(Strategy.fsdp, split))

    def context_parallel(self) -> CheckResult:
        """Compare context parallelism on two processes to one process.

        Raises NotApplicableError if two devices cannot split a row."""
        split = replace(self.context.small.parallel, context_parallel=2)
        trainer = replace(self.context.small.trainer, strategy=Strategy.fsdp, devices=2)
        try:
            build_parallel_dims(split, trainer, self.context.shape)
        except ConfigError as error:
            raise NotApplicableError(f"two devices cannot split a row: {error}") from error
        return self._compare(self._two(Strategy.fsdp, split))

    def _two(self, strategy: Strategy, parallel: ParallelConfig | None = None) -> Path:
        small = self.context.small
        trainer = replace(small.trainer, strategy=strategy, devices=2)
        shared = replace(small, trainer=trainer, parallel=parallel or small.parallel)
        name = strategy.name
        if shared.parallel.tensor_parallel > 1:
            name = "tensor"
        elif shared.parallel.context_parallel > 1:
            name = "context"
        return train_in_processes(in_folder(shared, self.folder / name))

    def _compare(self, other: Path) -> CheckResult:
        losses, norms = (
            figure_difference(figures(self.single, name), figures(other, name))
            for name in ("train/loss", "optim/grad_norm")
        )
        weights = state_difference(self.single, other, "model")
        return CheckResult(
            losses <= LOSSES_ALIKE and norms <= NORMS_ALIKE and weights <= WEIGHTS_ALIKE,
            f"over {STEPS} steps losses differ by {losses:.1e}, gradient norms by {norms:.1e}, "
            f"weights at the end by {weights:.1e}",
        )
