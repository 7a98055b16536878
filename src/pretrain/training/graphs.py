"""One graph per micro-batch: forward and backward pass are captured once, then replayed on other numbers.

A small model gives a GPU some hundred short kernels per micro-batch, and the processor cannot start them as fast as
they run. A replay starts all of them at once. Elsewhere a capture is the plain function: the same code around it runs,
and is tested, on CPUs.
"""

from collections.abc import Callable
from dataclasses import fields
from typing import Protocol

import torch
from torch import Tensor

from pretrain.objectives.batch import Batch

# runs forward and backward pass; adds to the gradients and returns summed loss and number of targets, detached
Work = Callable[[Batch], tuple[Tensor, Tensor]]
Replay = Callable[[], tuple[Tensor, Tensor]]
MAX_GRAPHS = 8  # shapes of micro-batches; those beyond are computed without a graph


class Capture(Protocol):
    """How work is recorded on one kind of device."""

    def warm_up(self, work: Replay) -> tuple[Tensor, Tensor]:
        """Run work for the first time, without recording it."""
        ...

    def record(self, work: Replay) -> Replay:
        """Return what does the work again, on the numbers that its tensors then hold; it has not been done yet."""
        ...


class PlainCalls:
    """Work without a graph: a replay calls it again."""

    def warm_up(self, work: Replay) -> tuple[Tensor, Tensor]:
        """Run work."""
        return work()

    def record(self, work: Replay) -> Replay:
        """Return work itself."""
        return work


class CudaGraphs:
    """Work as CUDA graphs, which share one pool of memory: they never run at the same time.

    Dropout stays exact: a replay draws from the generator of the device as the work itself would.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, work: Replay) -> tuple[Tensor, Tensor]:
        """Run work on the stream that records, as the nodes that add up gradients keep to their first stream."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = work()
        current.wait_stream(self._stream)
        for tensor in result:
            tensor.record_stream(current)
        return result

    def record(self, work: Replay) -> Replay:
        """Record work; the thread that copies batches ahead may allocate meanwhile."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            result = work()

        def replay() -> tuple[Tensor, Tensor]:
            graph.replay()
            return result

        return replay


def capture_on(device: torch.device) -> Capture:
    """Return how work is recorded on a device: as CUDA graphs, or where there are none as plain calls."""
    return CudaGraphs(device) if device.type == "cuda" else PlainCalls()


class MicroBatchGraphs:
    """Does `work` on micro-batches: the first of its shapes without a graph, the second and later ones by replay.

    Every micro-batch is copied into the tensors that the graph of its shapes reads. Gradients must stay in their
    memory: `zero_grad(set_to_none=False)`. A parameter that a step does not use then has a gradient of 0 instead of
    none, if an earlier step did. The result is overwritten by the next micro-batch of these shapes.
    """

    def __init__(self, work: Work, capture: Capture) -> None:
        self._work = work
        self._capture = capture
        self._inputs: dict[object, Batch] = {}
        self._replays: dict[object, Replay] = {}

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Do the work of a micro-batch; return its summed loss and number of targets, detached."""
        shapes = _shapes(batch)
        if shapes not in self._inputs:
            if len(self._inputs) >= MAX_GRAPHS:
                return self._work(batch)
            self._inputs[shapes] = batch.map(torch.clone)
            return self._capture.warm_up(lambda: self._work(self._inputs[shapes]))
        inputs = self._inputs[shapes]
        _copy(batch, inputs)
        if shapes not in self._replays:
            self._replays[shapes] = self._capture.record(lambda: self._work(inputs))
        return self._replays[shapes]()


def _shapes(batch: Batch) -> object:
    """Return what makes batches take the same graph: shape and dtype of every tensor, and which there are."""
    tensors = (getattr(batch, field.name) for field in fields(batch))
    return tuple(None if tensor is None else (tensor.shape, tensor.dtype) for tensor in tensors)


def _copy(batch: Batch, into: Batch) -> None:
    """Copy every tensor of a batch into that of another one of its shapes."""
    for field in fields(batch):
        tensor = getattr(batch, field.name)
        if tensor is not None:
            getattr(into, field.name).copy_(tensor, non_blocking=True)
