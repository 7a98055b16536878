"""A callback that lists where one step would wait for a GPU: a stand-in on CPUs, where nothing waits."""

import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils._python_dispatch import TorchDispatchMode

import pretrain

SOURCES = Path(pretrain.__file__).parent
READS_CPU_MEMORY = ("step_outcomes.py", "agreement.py", "ledger.py")  # what they read has been copied there
# operations whose result, or the shape of it, the host must know
_READS = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "repeat_interleave", "equal"}


def _where() -> str:
    """Return the innermost function of the package on the stack, as file:function."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(SOURCES) or "lightning" in path.parts:
            return f"{path.name}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "?"


class _Reads(TorchDispatchMode):
    """Notes operations that read a number on the host."""

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self.note = note

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name.removeprefix("aten::") in _READS:
            self.note(func._schema.name)
        return func(*args, **(kwargs or {}))


class Waits(Callback):
    """Lists the waits of step `step` (from 0), from its first micro-batch to the last callback."""

    def __init__(self, step: int = 3, file: str = "") -> None:
        self.step = step
        self.file = file  # to write the list into, one line each, after the rank
        self.found: list[str] = []
        self.seen = False
        self._ending = ExitStack()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin to note."""
        if trainer.global_step != self.step or batch_idx % trainer.accumulate_grad_batches or self.seen:
            return
        self.seen = True
        for name in ("tolist", "numpy", "cpu", "__array__"):
            self._ending.enter_context(mock.patch.object(torch.Tensor, name, self._noting(name)))
        self._ending.enter_context(mock.patch.object(torch, "tensor", self._noting_tensor()))
        self._ending.enter_context(_Reads(self._note))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End; this is the last callback."""
        ended = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if ended and trainer.global_step == self.step + 1:
            self._ending.close()
            if self.file:
                with Path(self.file).open("a") as file:
                    file.write("".join(f"{trainer.global_rank} {each}\n" for each in [*self.found, "done"]))

    def _note(self, what: str) -> None:
        where = _where()
        if threading.current_thread() is threading.main_thread() and where.split(":")[0] not in READS_CPU_MEMORY:
            self.found.append(f"{where} {what}")

    def _noting(self, name: str) -> Callable[..., Any]:
        original = getattr(torch.Tensor, name)

        def noting(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self._note(name)
            return original(tensor, *args, **kwargs)

        return noting

    def _noting_tensor(self) -> Callable[..., Any]:
        original = torch.tensor

        def tensor(*args: Any, **kwargs: Any) -> torch.Tensor:
            if kwargs.get("device") is not None:
                self._note("torch.tensor on a device")
            return original(*args, **kwargs)

        return tensor
