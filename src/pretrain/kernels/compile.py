"""torch's compiler: whether it can work on a device, and what keeps it from making wrong code on a processor."""

import copy
import os
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from pretrain.errors import printable

_failed: list[str] = []  # kinds of the errors of this process's compiler


def compiler() -> str:
    """Return the name of the C++ compiler that torch calls on a processor."""
    return os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")


def can_compile(device: torch.device) -> bool:
    """Whether blocks can be compiled on this device: on a GPU by Triton, which needs a C compiler."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton  # here: it asks the GPU

        names = [os.environ["CC"]] if "CC" in os.environ else ["cc", "gcc", "clang"]
        return has_triton() and any(shutil.which(name) for name in names)
    return device.type == "cpu" and shutil.which(compiler()) is not None


def compile_block(block: nn.Module) -> None:
    """Have a block compiled at its next pass, in place, so that names of parameters stay what they are."""
    avoid_wrong_code()
    block.compile(backend=compile_or_leave, dynamic=False)


def compile_or_leave(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    """Compile a graph as torch's own backend does; one that cannot be compiled runs as it is, and one line says so.

    Graphs come while a run trains and validates, as new shapes and modes do: a compiler that fails then must not end
    it. Both directions are compiled at once, so that a failure of either is met here and not inside the backward pass.
    """
    from torch._functorch import config
    from torch._inductor.compile_fx import compile_fx

    spare = copy.deepcopy(graph)  # the compiler may have changed the graph when it fails
    try:
        with config.patch(force_non_lazy_backward_lowering=True):
            return cast("Callable[..., Any]", compile_fx(graph, inputs))
    except Exception as error:
        _tell_once(error)
        return spare.forward


def _tell_once(error: Exception) -> None:
    """Print the first failure of this process, by its first line: a compiler's own words fill thousands."""
    if not _failed:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:200]
        what = f"{type(error).__name__}: {first}"
        text = f"warning: a part of the model could not be compiled and runs as it is, more slowly: {what}"
        print(printable(text, one_line=True), flush=True)
    _failed.append(type(error).__name__)


def avoid_wrong_code() -> None:
    """Have GCC leave straight-line code as torch wrote it, with vector instructions where it wants them.

    GCC 12.2 puts such code together to instructions of 512 bits, and makes wrong code of it where it does not know the
    processor (of torch 2.13, for an Intel Xeon with AMX: gradients of rotary keys in bfloat16 were NaN). torch has it
    leave loops alone for the like reason, and has no setting for this; what `TORCHINDUCTOR_CPP_MARCH` sets goes as it
    is to the compiler.
    """
    from torch._inductor import config  # here: loading it takes a second

    x86 = platform.machine() in ("x86_64", "AMD64") and sys.platform == "linux"
    if config.cpp.march is None and x86 and "clang" not in Path(compiler()).name:
        config.cpp.march = "native -fno-tree-slp-vectorize"
