"""Train the same steps in several parallel layouts, without a trainer, and compare the results.

task = TrainingTask(build=..., values=..., batch=..., optimizer=AdamWConfig(...))
one, two = train_cases([(task, Case()), (task, Case(2, ParallelConfig(tensor_parallel=2)))], steps=20)
print(difference(one, two))
"""

import signal
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, multiprocessing
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from pretrain.data.collate import IGNORE
from pretrain.models.transformer import Transformer
from pretrain.objectives.batch import Batch
from pretrain.objectives.objective import ModelWithLoss
from pretrain.optim.config import OptimizerConfig
from pretrain.optim.groups import parameters_by_name
from pretrain.parallel.config import ParallelConfig, ParallelDims
from pretrain.parallel.mesh import build_mesh, full_tensor, global_norm, load_parameters, scale_by
from pretrain.parallel.parallelize import parallelize
from pretrain.parallel.process_group import end_process
from pretrain.stop_signals import join_no_group, keep_from_children


@dataclass(frozen=True)
class TrainingTask:
    """A model, its data and optimizer. Other processes receive it, so they must be able to import its functions."""

    build: Callable[[], ModelWithLoss]  # on the meta device
    values: Callable[[str, torch.Size], Tensor]  # the first value of each parameter, by name and shape
    batch: Callable[[int], Batch]  # the whole batch of a step
    optimizer: OptimizerConfig
    clip_norm: float = 1.0  # 0 does not clip


@dataclass(frozen=True)
class Case:
    """A parallel layout; `settings` hold the tensor-parallel size and the number of replicas."""

    ranks: int = 1
    settings: ParallelConfig = field(default_factory=ParallelConfig)
    ddp: bool = False  # every process holds the whole model
    accumulation: int = 1  # micro-batches of a step on each process
    bf16: bool = False

    @property
    def parallel_dims(self) -> ParallelDims:
        """How the processes are arranged."""
        return ParallelDims(self.ranks, self.settings.replicas, self.settings.tensor_parallel)

    @property
    def sharded(self) -> bool:
        """Whether FSDP2 is at work."""
        return self.ranks > 1 and not self.ddp


@dataclass(frozen=True)
class ParityResult:
    """Mean loss and gradient norm of every step, and the weights after the last."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class Difference:
    """The largest differences between two cases."""

    loss: float
    norm: float
    weights: float


def difference(one: ParityResult, other: ParityResult) -> Difference:
    """Return the largest differences between two results."""

    def apart(ours: list[float], theirs: list[float]) -> float:
        return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))

    assert one.weights.keys() == other.weights.keys()
    weights = max(float((value - other.weights[name]).abs().max()) for name, value in one.weights.items())
    return Difference(apart(one.losses, other.losses), apart(one.norms, other.norms), weights)


def train_cases(cases: Sequence[tuple[TrainingTask, Case]], steps: int) -> list[ParityResult]:
    """Return the result of each case. Cases with equally many processes share one process group.

    Raises torch's ProcessRaisedException where a case cannot be trained.
    """
    found: dict[int, ParityResult] = {}
    for ranks in sorted({case.ranks for _, case in cases}):
        numbers = [number for number, (_, case) in enumerate(cases) if case.ranks == ranks]
        found |= dict(zip(numbers, _run_group([cases[n] for n in numbers], steps, ranks), strict=True))
    return [found[number] for number in range(len(cases))]


def _run_group(cases: list[tuple[TrainingTask, Case]], steps: int, ranks: int) -> list[ParityResult]:
    with tempfile.TemporaryDirectory() as folder:
        results = multiprocessing.get_context("spawn").SimpleQueue()
        arguments = (ranks, Path(folder) / "store", cases, steps, results)
        keep_from_children()
        processes: Any = multiprocessing.spawn(_worker, arguments, nprocs=ranks, join=False)  # type: ignore[attr-defined]
        found: list[ParityResult] = []
        ended = False
        try:
            while not (ended and results.empty()):
                ended = ended or processes.join(timeout=0.05)
                while not results.empty():
                    losses, norms, weights = results.get()
                    found.append(
                        ParityResult(losses, norms, {name: torch.from_numpy(w) for name, w in weights.items()})
                    )
        finally:
            for process in processes.processes:
                process.kill()  # where this process is asked to stop, they do not hear of it
        return found


def _worker(
    rank: int, ranks: int, store: Path, cases: list[tuple[TrainingTask, Case]], steps: int, results: Any
) -> None:
    join_no_group()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # by which torch ends it where its parent was killed
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    for subject, case in cases:
        found = train_case(subject, case, steps)
        if rank == 0:
            weights = {name: weight.numpy() for name, weight in found.weights.items()}
            results.put((found.losses, found.norms, weights))
    end_process()


def train_case(subject: TrainingTask, case: Case, steps: int) -> ParityResult:
    """Return the result of a case; every process of its group calls this."""
    model_with_loss = prepare_case(subject, case)
    optimizer = subject.optimizer.build(model_with_loss.model)
    module = DistributedDataParallel(model_with_loss) if case.ddp else model_with_loss
    losses, norms = [], []
    for step in range(steps):
        loss, norm = train_step(module, optimizer, subject, case, step)
        losses.append(loss)
        norms.append(norm)
    weights = {name: full_tensor(weight).clone() for name, weight in parameters_by_name(model_with_loss.model).items()}
    torch.compiler.reset()
    return ParityResult(losses, norms, weights)


def prepare_case(subject: TrainingTask, case: Case) -> ModelWithLoss:
    """Return the task's model with its loss and initial weights, parallelized for the case."""
    model_with_loss = subject.build()
    mesh = build_mesh(case.parallel_dims, "cpu") if case.sharded else None
    parallelize(model_with_loss, mesh, case.settings, case.bf16)
    model_with_loss.to_empty(device="cpu")
    model = model_with_loss.model
    assert isinstance(model, Transformer)
    model.tie()
    load_parameters(model, subject.values)
    return model_with_loss.train()


def train_step(
    module: torch.nn.Module, optimizer: torch.optim.Optimizer, subject: TrainingTask, case: Case, step: int
) -> tuple[float, float]:
    """Take one optimizer step; return its mean loss over all processes, in nats per target, and its gradient's norm."""
    parallel_dims, rank = case.parallel_dims, torch.distributed.get_rank()
    batch = subject.batch(step)
    targets = int((batch.targets != IGNORE).sum())
    total = torch.zeros((), dtype=torch.float64)
    optimizer.zero_grad(set_to_none=True)
    for part in range(case.accumulation):
        if isinstance(module, FSDPModule) and case.settings.no_sync_accumulation:
            module.set_requires_gradient_sync(part == case.accumulation - 1)
        index = part * parallel_dims.data_ranks + parallel_dims.data_rank(rank)
        autocast = torch.autocast("cpu", torch.bfloat16) if case.bf16 and not case.sharded else nullcontext()
        with autocast:
            loss, _ = module(_rows(batch, index, case.accumulation * parallel_dims.data_ranks))
        (loss * (parallel_dims.data_ranks / targets)).backward()
        total += loss.detach() * parallel_dims.is_tp_rank_zero(rank)
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = global_norm(gradients)
    if subject.clip_norm:
        scale_by(gradients, (subject.clip_norm / (norm + 1e-6)).clamp(max=1.0))
    optimizer.step()
    torch.distributed.all_reduce(total)
    return float(total) / targets, float(norm)


def _rows(batch: Batch, index: int, count: int) -> Batch:
    """Return the rows of a batch that fall to one of so many slots."""
    size = len(batch.tokens) // count
    part = slice(index * size, (index + 1) * size)
    values = (getattr(batch, each.name) for each in fields(Batch))
    return Batch(*(None if value is None else value[part] for value in values))  # type: ignore[arg-type]
