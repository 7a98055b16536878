"""Count the memory of one training step by running it on fake tensors, on any number of simulated devices.

The step runs under FakeTensorMode on a process group of torch's "fake" backend, as rank 0, which has FSDP2's fullest
shard. The storage of every operation is counted while it lives, so the peak includes gathered weights, temporaries and
gradients in transit. Kernels are the CPU's; allocator fragmentation and the libraries are not counted.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pretrain.config.run import RunConfig
from pretrain.kernels.half_copies import HalfCopies
from pretrain.models.layers import use_half_stream
from pretrain.models.lora import add_adapters
from pretrain.models.transformer import Transformer
from pretrain.objectives.batch import Batch
from pretrain.objectives.objective import ModelWithLoss
from pretrain.optim.skipped_steps import constants
from pretrain.parallel.config import ParallelDims
from pretrain.parallel.context_parallel import build_row_split
from pretrain.parallel.mesh import build_mesh, global_norm, scale_by
from pretrain.parallel.parallelize import parallelize
from pretrain.parallel.precision import autocast, half_dtype
from pretrain.planning.workload import PlannedVocabulary, Workload


@dataclass(frozen=True)
class Simulated:
    """Bytes on rank 0 in an optimizer step after the first."""

    weights: int
    gradients: int
    optimizer: int
    activations: int  # saved for the backward pass by one micro-batch, without weights
    average: int  # of the weights, with ema.decay
    copies: int  # of the matrices, in 16 bits, with parallel.half_weight_copies
    peak: int
    seconds: float  # duration of the simulation


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations allocate, and their peak.

    FSDP2 frees a gathered storage by resizing it to 0, and fills it again by an operation on it. So an operation's
    storages are measured at once, and all others again before a new peak is recorded.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sizes: dict[int, int] = {}
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._total = 0  # upper bound of the live bytes
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it comes back as operations on local shards
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, result)):
            if isinstance(value, Tensor):
                self.add(value)
        if self._total > self.peak:
            self.peak = max(self.peak, self.now())
        return result

    def add(self, tensor: Tensor) -> None:
        """Count the storage of a tensor, once, at its current size."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._sizes:
            self._storages[key] = weakref.ref(storage)
            weakref.finalize(storage, self._forget, key)
        self._total += size - self._sizes.get(key, 0)
        self._sizes[key] = size

    def now(self) -> int:
        """Return the live bytes."""
        for key, reference in list(self._storages.items()):
            storage = reference()
            size = 0 if storage is None else storage.nbytes()
            self._total += size - self._sizes[key]
            self._sizes[key] = size
        return self._total

    def _forget(self, key: int) -> None:
        self._total -= self._sizes.pop(key, 0)
        self._storages.pop(key, None)


def dry_run(config: RunConfig, workload: Workload) -> Simulated:
    """Return the memory of one optimizer step after the first, on rank 0.

    DDP's gradient buckets are not simulated. Nothing is allocated, whatever the size of the model.
    """
    started = time.perf_counter()
    with ExitStack() as stack:
        stack.callback(constants.cache_clear)  # those of a dry run are simulated, and a training would take them
        mesh, split_rows = None, None
        if workload.sharded or workload.context > 1:
            mesh = stack.enter_context(_simulated_devices(workload.parallel_dims))
            split_rows = build_row_split(workload.parallel_dims, "cpu")
        model_with_loss = build_model_with_loss(config, workload, mesh if workload.sharded else None)
        model_with_loss.split_rows = split_rows
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        model_with_loss.to_empty(device="cpu")
        model = model_with_loss.model
        assert isinstance(model, Transformer)
        model.tie()
        model_with_loss.train()
        optimizer = config.optimizer.build(model)
        live = stack.enter_context(LiveBytes())
        for parameter in model_with_loss.parameters():
            live.add(_local(parameter))
        averages = [torch.empty_like(each) for each in model_with_loss.parameters()] if workload.averaged else []
        half = half_dtype(workload.precision)
        if half is not None and workload.copied:
            model_with_loss.half_copies = HalfCopies(model, half)
        batch = zero_batch(config, workload)
        for parameter in model_with_loss.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()  # creates the optimizer's state
        optimizer.zero_grad(set_to_none=True)
        saved = Saved(model_with_loss)
        live.peak = 0
        gradients = _step(model_with_loss, optimizer, batch, workload, saved)
        return Simulated(
            weights=sum(_bytes(parameter) for parameter in model_with_loss.parameters()),
            gradients=gradients,
            optimizer=sum(_bytes(v) for state in optimizer.state.values() for v in state.values()),
            activations=saved.bytes,
            average=sum(_bytes(each) for each in averages),
            copies=sum(_bytes(each) for each in copies_of(model_with_loss)),
            peak=live.peak,
            seconds=time.perf_counter() - started,
        )


@contextmanager
def _simulated_devices(parallel_dims: ParallelDims) -> Iterator[DeviceMesh]:
    """Yield a mesh of simulated devices; its collectives do nothing.

    torch keeps how each operation on shards is split, by shapes and by the layout of the mesh, together with simulated
    tensors. They are dropped in the end: a training in this process on a mesh of the same layout would take them.
    """
    from torch.distributed.tensor.debug import _clear_sharding_prop_cache
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=parallel_dims.ranks)
    try:
        yield build_mesh(parallel_dims, "cpu")
    finally:
        torch.distributed.destroy_process_group()
        _clear_sharding_prop_cache()


def build_model_with_loss(config: RunConfig, workload: Workload, mesh: DeviceMesh | None) -> ModelWithLoss:
    """Build the run's model with loss on the meta device, parallelized as in the run."""
    with torch.device("meta"):
        model = workload.model.build(workload.vocab_size, config.objective.causal)
        add_adapters(model, config.lora)
    model.groups_documents = False  # documents of simulated tensors have no lengths
    if workload.half_stream:
        use_half_stream(model)
    objective = config.objective.build(PlannedVocabulary(workload.vocab_size), config.seed)
    objective.static_shapes = True  # simulated tensors have no values
    model_with_loss = ModelWithLoss(model, objective)
    settings = replace(config.parallel, compile=False)  # compiling changes memory by fusion alone
    parallelize(model_with_loss, mesh, settings, half_dtype(workload.precision))
    return model_with_loss


def copies_of(model_with_loss: ModelWithLoss) -> list[Tensor]:
    """Return the 16-bit copies of the matrices, if there are any."""
    return [] if model_with_loss.half_copies is None else model_with_loss.half_copies.tensors


def zero_batch(config: RunConfig, workload: Workload) -> Batch:
    """Return a micro-batch of zeros in the objective's shapes."""
    rows, length, per_row = workload.rows, workload.length, workload.targets_per_row
    wide = torch.zeros(rows * workload.passes, length, dtype=torch.int64)
    narrow = torch.zeros(rows, per_row, dtype=torch.int64)
    return Batch(
        tokens=wide,
        positions=wide.clone(),
        documents=torch.zeros_like(wide, dtype=torch.int32) if workload.masked else None,
        targets=narrow,
        target_positions=narrow.clone() if config.objective.chooses_positions else None,
        sample_indices=torch.zeros(rows, dtype=torch.int64),
        is_causal=torch.zeros(len(wide), dtype=torch.bool) if config.objective.mixes_directions else None,
        weights=torch.ones(rows, per_row) if config.objective.weighs_targets else None,
        counts=torch.full((rows,), length) if config.objective.weighs_targets else None,
    )


class Saved(torch.autograd.graph.saved_tensors_hooks):
    """Sums the bytes that autograd saves for the backward pass, each storage once, without weights and their copies."""

    def __init__(self, model_with_loss: ModelWithLoss) -> None:
        self._model_with_loss = model_with_loss
        self._storages: dict[int, torch.UntypedStorage] = {}
        self.bytes = 0
        super().__init__(self._record, lambda tensor: tensor)

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        held = [*self._model_with_loss.parameters(), *copies_of(self._model_with_loss)]
        weights = {_local(each).untyped_storage()._cdata for each in held}
        # weights that FSDP2 gathered and freed have 0 bytes now
        self.bytes = sum(storage.nbytes() for key, storage in self._storages.items() if key not in weights)
        self._storages.clear()

    def _record(self, tensor: Tensor) -> Tensor:
        storage = _local(tensor).untyped_storage()
        self._storages[storage._cdata] = storage
        return tensor


def _step(model_with_loss: ModelWithLoss, optimizer: Optimizer, batch: Batch, workload: Workload, saved: Saved) -> int:
    """Take an optimizer step as the training module does, and return the bytes of its gradients."""
    for index in range(min(2, workload.accumulation)):  # later ones equal the second
        half = None if workload.sharded else half_dtype(workload.precision)
        with autocast("cpu", half), saved if index == 0 else nullcontext():
            loss, count = model_with_loss(batch)
        loss.backward()
        del loss, count
    parameters = [p for p in model_with_loss.parameters() if p.grad is not None]
    gradients = [p.grad for p in parameters if p.grad is not None]
    scale_by(gradients, 1.0 / global_norm(gradients))
    optimizer.step()
    return sum(_bytes(gradient) for gradient in gradients)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _bytes(tensor: Tensor) -> int:
    local = _local(tensor)
    return local.numel() * local.element_size()
