"""Selective checkpointing saves the results of matmuls, by any library."""

import shutil
from typing import Any

import pytest
import torch
from subjects import subject
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.kernels import onednn_linear
from pretrain.parallel.config import ParallelConfig
from pretrain.parallel.parity import Case, prepare_case

PLAIN: dict[str, bool] = {}
CHECKPOINTED = {"activation_checkpointing": True}
SELECTIVE = {**CHECKPOINTED, "selective_checkpointing": True}
MATMULS = ("aten::mm", "aten::addmm", "mkldnn::_linear_pointwise")


@pytest.fixture(params=[True, False], ids=["oneDNN's", "torch's"])
def matmul_library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    monkeypatch.setattr(onednn_linear, "amd_with_avx512", lambda: request.param)
    monkeypatch.setattr(onednn_linear, "MIN_MULTIPLICATIONS", 1000)


@pytest.mark.usefixtures("matmul_library")
def test_no_matmul_is_computed_twice() -> None:
    assert counted(SELECTIVE) == counted(PLAIN) < counted(CHECKPOINTED)


@pytest.mark.long
@pytest.mark.usefixtures("matmul_library")
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a processor")
def test_no_matmul_is_computed_twice_in_compiled_blocks() -> None:
    assert counted(SELECTIVE, compiled=True) == counted(PLAIN, compiled=True) < counted(CHECKPOINTED, compiled=True)


class Matmuls(TorchDispatchMode):
    """Counts the matmuls that are computed; one whose result was kept does not reach this mode."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func._schema.name in MATMULS
        return func(*args, **(kwargs or {}))


def counted(settings: dict[str, bool], compiled: bool = False) -> int:
    """Return the number of matmuls of a tiny GPT's second forward and backward pass."""
    one = subject("gpt")
    model_with_loss = prepare_case(one, Case(1, ParallelConfig(**settings, compile=compiled)))
    model_with_loss(one.batch(0))[0].backward()
    if not compiled:
        with Matmuls() as matmuls:
            model_with_loss(one.batch(1))[0].backward()
        return matmuls.count
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        model_with_loss(one.batch(1))[0].backward()
    torch.compiler.reset()
    return sum(event.count for event in seen.key_averages() if event.key in MATMULS)
