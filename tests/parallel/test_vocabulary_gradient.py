"""Under FSDP2 with bfloat16 weights, the vocabulary matrix's gradient is summed over chunks in float32."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from pretrain.objectives import loss
from pretrain.objectives.loss import cross_entropy_sum
from pretrain.parallel.mesh import full_tensor
from pretrain.parallel.process_group import end_process

TARGETS, VOCABULARY, WIDTH = 128 * 200, 64, 32  # two hundred chunks


class OnlyHead(nn.Module):
    """A head with its loss, as the outermost unit of a sharded model."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, features: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy_sum(features, self.head, targets)  # type: ignore[arg-type]


def _problem() -> tuple[OnlyHead, Tensor, Tensor]:
    torch.manual_seed(0)
    features = torch.randn(TARGETS, WIDTH) + 1.0  # gradients that do not cancel out
    return OnlyHead(), features, torch.randint(VOCABULARY // 8, (TARGETS,))


def _work(rank: int, store: Path, answers: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    loss.MAX_UNCHUNKED_LOGITS, loss.MAX_CHUNK_LOGITS = 0, 1
    module, features, targets = _problem()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    fully_shard(module, mesh=init_device_mesh("cpu", (2,)), mp_policy=policy)  # type: ignore[call-overload]
    module(features, targets).backward()
    gradients = [full_tensor(parameter.grad) for parameter in module.parameters() if parameter.grad is not None]
    if rank == 0:
        answers.put([gradient.numpy() for gradient in gradients])
    end_process()


@pytest.mark.usefixtures("forked_ranks")
@pytest.mark.slow
def test_chunks_are_summed_in_32_bits_where_weights_are_gathered_in_16(tmp_path: Path) -> None:
    answers = multiprocessing.get_context("spawn").SimpleQueue()
    processes: Any = multiprocessing.spawn(_work, (tmp_path / "store", answers), nprocs=2, join=False)  # type: ignore[attr-defined]
    found = [torch.from_numpy(each).double() for each in answers.get()]
    processes.join()
    module, features, targets = _problem()
    features, weight, bias = (each.detach().bfloat16().double() for each in (features, *module.parameters()))
    slope = (features @ weight.T + bias).softmax(-1) - nn.functional.one_hot(targets, VOCABULARY)
    for gradient, exact in zip(found, (slope.T @ features, slope.sum(0)), strict=True):
        error = float((gradient - exact).norm() / exact.norm())
        assert error < 4e-3  # of one rounding to bfloat16; sums in bfloat16 are off by several times as much
