"""Copies of a device's tensors in CPU memory, after the device's work so far: no process waits until it reads them."""

import torch
from torch import Tensor


class HostCopies:
    """Copies under names, whose memory later copies under the same names reuse.

    From a GPU they go to page-locked memory on the stream that computes: they are done before any later work changes
    the tensors. From a CPU they are made at once.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._done: torch.cuda.Event | None = None  # recorded after the newest copy

    def copy(self, name: str, tensor: Tensor) -> Tensor:
        """Return a copy of `tensor` as the work so far leaves it; it may be read after `wait`."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[name] = buffer
        buffer.copy_(tensor, non_blocking=tensor.is_cuda)
        if tensor.is_cuda:
            self._done = torch.cuda.current_stream(tensor.device).record_event(self._done)
        return buffer

    def wait(self) -> None:
        """Wait until every copy can be read; any thread may do so."""
        if self._done is not None:
            self._done.synchronize()
