"""torch.compile: where it works, its fallback to eager, and a workaround for wrong code on CPUs."""

import copy
import functools
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

_failed: list[str] = []  # error types of this process's failed compilations


def compiler() -> str:
    """Return the name of the C++ compiler that torch.compile calls for CPUs."""
    return os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")


def can_compile(device: torch.device) -> bool:
    """Return whether blocks can be compiled on this device; a GPU needs Triton and a C compiler."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton  # here: it initializes the GPU

        names = [os.environ["CC"]] if "CC" in os.environ else ["cc", "gcc", "clang"]
        return has_triton() and any(shutil.which(name) for name in names)
    return device.type == "cpu" and shutil.which(compiler()) is not None


def compile_block(block: nn.Module) -> None:
    """Compile a block at its next forward pass, in place: parameter names do not change."""
    avoid_wrong_code()
    block.compile(backend=compile_or_run_eager, dynamic=False)


def compile_or_run_eager(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    """Compile a graph by torch's default backend; return it uncompiled, with one warning, if that fails.

    New shapes and modes need new graphs in the middle of a run, and a failing compiler must not end it. Forward and
    backward are compiled together, so that a failure of either is caught here and not inside the backward pass.
    """
    from torch._functorch import config
    from torch._inductor.compile_fx import compile_fx

    give_forks_compile_threads()
    original = copy.deepcopy(graph)  # a failed compilation may have changed the graph
    try:
        with config.patch(force_non_lazy_backward_lowering=True):
            return cast("Callable[..., Any]", compile_fx(graph, inputs))
    except Exception as error:
        _warn_once(error)
        return original.forward


@functools.cache
def give_forks_compile_threads() -> None:
    """Give each process that is forked from this one compile threads of its own.

    torch keeps a pool of threads after its first compilation. A forked process has the pool but no threads, and its
    first compilation waits for them without end: torch renews the pool of processes in a fork, not that of threads.
    """
    from torch._inductor.async_compile import AsyncCompile

    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(after_in_child=AsyncCompile.pool.cache_clear)


def _warn_once(error: Exception) -> None:
    """Print the first line of this process's first failure; a compiler's message has thousands."""
    if not _failed:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:200]
        text = f"warning: a part of the model runs uncompiled, more slowly: {type(error).__name__}: {first}"
        print(printable(text, one_line=True), flush=True)
    _failed.append(type(error).__name__)


def avoid_wrong_code() -> None:
    """Disable GCC's vectorization of straight-line code (-fno-tree-slp-vectorize) in compiled blocks.

    GCC 12.2 combines such code into 512-bit instructions, wrongly if it does not know the CPU: with torch
    2.13 on an Intel Xeon with AMX, gradients of rotary keys in bfloat16 were NaN. torch disables loop vectorization for
    a similar reason but has no setting for this one; it passes `cpp.march` (`TORCHINDUCTOR_CPP_MARCH`) to the compiler
    unchanged.
    """
    from torch._inductor import config  # here: loading it takes a second

    x86 = platform.machine() in ("x86_64", "AMD64") and sys.platform == "linux"
    if config.cpp.march is None and x86 and "clang" not in Path(compiler()).name:
        config.cpp.march = "native -fno-tree-slp-vectorize"
