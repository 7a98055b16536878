"""Copies of a device's tensors in CPU memory, made beside the device's work: neither waits for the other."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class HostCopies:
    """Copies under names, whose memory later copies under the same names reuse.

    On a GPU they go to page-locked memory over a stream of their own. On a CPU the same calls copy at once.
    """

    device: torch.device

    def __post_init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._done: torch.cuda.Event | None = None  # recorded behind the newest copy

    def copy(self, name: str, tensor: Tensor) -> Tensor:
        """Return a copy of `tensor` as the work so far leaves it; it may be read after `wait`."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            pinned = self._stream is not None
            buffer = self._buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
        if self._stream is None or not tensor.is_cuda:
            return buffer.copy_(tensor)
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            buffer.copy_(tensor, non_blocking=True)
        tensor.record_stream(self._stream)  # its memory is not given away before it is copied
        self._done = self._stream.record_event()
        return buffer

    def wait(self) -> None:
        """Wait until every copy can be read."""
        if self._done is not None:
            self._done.synchronize()

    def hold_back(self) -> None:
        """Let the device's later work on this thread's stream begin after the copies: it may change what they read."""
        if self._done is not None:
            torch.cuda.current_stream(self.device).wait_event(self._done)
