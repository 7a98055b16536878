"""Train the same steps in several parallel layouts, without a Trainer, and compare the results.

task = TrainingTask(build=..., values=..., batch=..., optimizer=AdamWConfig(...))
one, two = train_cases([(task, Case()), (task, Case(2, ParallelConfig(tensor_parallel=2)))], steps=20)
print(difference(one, two))
"""

import signal
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, multiprocessing
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from pretrain.kernels.half_copies import HalfCopies
from pretrain.models.transformer import Transformer
from pretrain.objectives.batch import Batch
from pretrain.objectives.objective import ModelWithLoss
from pretrain.optim.config import OptimizerConfig
from pretrain.optim.groups import parameters_by_name
from pretrain.parallel.config import ParallelConfig, ParallelDims
from pretrain.parallel.context_parallel import build_row_split
from pretrain.parallel.mesh import build_mesh, full_tensor, global_norm, load_parameters, scale_by
from pretrain.parallel.parallelize import parallelize
from pretrain.parallel.precision import autocast
from pretrain.parallel.process_group import end_process
from pretrain.stop_signals import join_no_group, keep_from_children


@dataclass(frozen=True)
class TrainingTask:
    """A model, its data and optimizer. It is pickled to other processes, which must be able to import its functions."""

    build: Callable[[], ModelWithLoss]  # on the meta device
    values: Callable[[str, torch.Size], Tensor]  # initial value of each parameter, by name and shape
    batch: Callable[[int], Batch]  # the global batch of a step
    optimizer: OptimizerConfig
    clip_norm: float = 1.0  # 0 does not clip


@dataclass(frozen=True)
class Case:
    """A parallel layout; `settings` hold the tensor- and context-parallel sizes and the number of replicas."""

    ranks: int = 1
    settings: ParallelConfig = field(default_factory=ParallelConfig)
    ddp: bool = False  # every process holds the full model
    accumulation: int = 1  # micro-batches of a step on each process
    half: torch.dtype | None = None  # of the matmuls

    @property
    def parallel_dims(self) -> ParallelDims:
        """Shape of the device mesh."""
        settings = self.settings
        return ParallelDims(self.ranks, settings.replicas, settings.tensor_parallel, settings.context_parallel)

    @property
    def sharded(self) -> bool:
        """Whether FSDP2 shards the model."""
        return self.ranks > 1 and not self.ddp


@dataclass(frozen=True)
class ParityResult:
    """Mean loss and gradient norm of every step, and the final weights."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class Difference:
    """The largest absolute differences between two results."""

    loss: float
    norm: float
    weights: float


def difference(one: ParityResult, other: ParityResult) -> Difference:
    """Return the largest absolute differences between two results."""

    def largest(ours: list[float], theirs: list[float]) -> float:
        return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))

    assert one.weights.keys() == other.weights.keys()
    weights = max(float((value - other.weights[name]).abs().max()) for name, value in one.weights.items())
    return Difference(largest(one.losses, other.losses), largest(one.norms, other.norms), weights)


def train_cases(cases: Sequence[tuple[TrainingTask, Case]], steps: int) -> list[ParityResult]:
    """Return the result of each case; cases with the same number of processes share a process group.

    Raises torch's ProcessRaisedException if a case cannot be trained.
    """
    results: dict[int, ParityResult] = {}
    for ranks in sorted({case.ranks for _, case in cases}):
        indices = [index for index, (_, case) in enumerate(cases) if case.ranks == ranks]
        results |= dict(zip(indices, _run_group([cases[index] for index in indices], steps, ranks), strict=True))
    return [results[index] for index in range(len(cases))]


def _run_group(cases: list[tuple[TrainingTask, Case]], steps: int, ranks: int) -> list[ParityResult]:
    with tempfile.TemporaryDirectory() as folder:
        queue = multiprocessing.get_context("spawn").SimpleQueue()
        arguments = (f"file://{folder}/store", cases, steps, queue)
        keep_from_children()
        processes: Any = multiprocessing.spawn(_worker, arguments, nprocs=ranks, join=False)  # type: ignore[attr-defined]
        results: list[ParityResult] = []
        ended = False
        try:
            while not (ended and queue.empty()):
                ended = ended or processes.join(timeout=0.05)
                while not queue.empty():
                    losses, norms, weights = queue.get()
                    results.append(
                        ParityResult(losses, norms, {name: torch.from_numpy(w) for name, w in weights.items()})
                    )
        finally:
            for process in processes.processes:
                process.kill()  # a signal to this process does not reach them
        return results


def _worker(rank: int, store: str, cases: list[tuple[TrainingTask, Case]], steps: int, queue: Any) -> None:
    join_no_group()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # torch sends it if the parent is killed
    torch.set_num_threads(1)
    ranks = cases[0][1].ranks
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks)
    for task, case in cases:
        result = train_case(task, case, steps)
        if rank == 0:
            weights = {name: weight.numpy() for name, weight in result.weights.items()}
            queue.put((result.losses, result.norms, weights))
    end_process()


def train_case(task: TrainingTask, case: Case, steps: int) -> ParityResult:
    """Return the result of a case; every process of its group must call this."""
    model_with_loss = prepare_case(task, case)
    optimizer = task.optimizer.build(model_with_loss.model)
    module = DistributedDataParallel(model_with_loss) if case.ddp else model_with_loss
    losses, norms = [], []
    for step in range(steps):
        if model_with_loss.half_copies is not None:
            model_with_loss.half_copies.refresh()
        loss, norm = train_step(module, optimizer, task, case, step)
        losses.append(loss)
        norms.append(norm)
    weights = {name: full_tensor(weight).clone() for name, weight in parameters_by_name(model_with_loss.model).items()}
    torch.compiler.reset()
    return ParityResult(losses, norms, weights)


def prepare_case(task: TrainingTask, case: Case) -> ModelWithLoss:
    """Return the task's model with its loss and initial weights, parallelized for the case."""
    model_with_loss = task.build()
    mesh = build_mesh(case.parallel_dims, "cpu") if case.sharded else None
    parallelize(model_with_loss, mesh, case.settings, case.half)
    model_with_loss.split_rows = build_row_split(case.parallel_dims, "cpu")
    model_with_loss.to_empty(device="cpu")
    model = model_with_loss.model
    assert isinstance(model, Transformer)
    model.tie()
    load_parameters(model, task.values)
    if case.half is not None and case.settings.half_weight_copies:
        model_with_loss.half_copies = HalfCopies(model, case.half)
    return model_with_loss.train()


def train_step(
    module: torch.nn.Module, optimizer: torch.optim.Optimizer, task: TrainingTask, case: Case, step: int
) -> tuple[float, float]:
    """Take one optimizer step; return the mean loss over all processes, in nats per target, and the gradient norm."""
    parallel_dims, rank = case.parallel_dims, torch.distributed.get_rank()
    batch = task.batch(step)
    size = len(batch.tokens) // (case.accumulation * parallel_dims.data_ranks)
    targets = int(batch.row_counts().sum())
    total = torch.zeros((), dtype=torch.float64)
    optimizer.zero_grad(set_to_none=True)
    for part in range(case.accumulation):
        if isinstance(module, FSDPModule) and case.settings.no_sync_accumulation:
            module.set_requires_gradient_sync(part == case.accumulation - 1)
        start = size * (part * parallel_dims.data_ranks + parallel_dims.data_rank(rank))
        rows = slice(start, start + size)
        with autocast("cpu", None if case.sharded else case.half):
            loss, _ = module(batch.map(itemgetter(rows)))
        (loss * (parallel_dims.gradient_ranks / targets)).backward()
        total += loss.detach() * parallel_dims.is_tp_rank_zero(rank)
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = global_norm(gradients)
    if task.clip_norm:
        scale_by(gradients, (task.clip_norm / (norm + 1e-6)).clamp(max=1.0))
    optimizer.step()
    torch.distributed.all_reduce(total)
    return float(total) / targets, float(norm)
