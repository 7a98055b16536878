"""Who owns which matrix, and which part of it each process has."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard
from torch.utils.flop_counter import FlopCounterMode

from pretrain.optim.config import MuonConfig
from pretrain.optim.matrix_owners import Region, assign, newton_schulz_flops, regions
from pretrain.parallel.mesh import full_tensor
from pretrain.parallel.process_group import end_process


def test_owners_have_like_work_and_every_matrix_one_owner() -> None:
    shapes = [torch.Size(size) for size in [(768, 768)] * 4 + [(3072, 768), (768, 3072)] for _ in range(12)]
    costs = [newton_schulz_flops(shape) for shape in shapes]
    owned = assign(costs, 8)
    assert sorted(index for indices in owned for index in indices) == list(range(len(shapes)))
    loads = [sum(costs[index] for index in indices) for indices in owned]
    assert max(loads) < 1.01 * sum(costs) / 8
    assert assign([3.0, 1.0], 4) == [[0], [1], [], []]  # more owners than matrices


def test_the_flops_of_an_iteration_are_those_of_its_matmuls() -> None:
    x = torch.zeros(5, 12)
    with FlopCounterMode(display=False) as counter:
        gram = x @ x.mT
        _ = (gram @ gram) @ x
    assert newton_schulz_flops(x.shape) == newton_schulz_flops(x.mT.shape) == counter.get_total_flops()


def test_parts_are_those_of_fsdp_and_tensor_parallelism() -> None:
    whole = torch.arange(5 * 4).view(5, 4)
    rows = regions(whole.shape, [4], [Shard(0)])
    assert [region.of(whole).shape[0] for region in rows] == [2, 2, 1, 0]
    assert torch.equal(torch.cat([region.of(whole) for region in rows]), whole)
    column = regions(whole.shape, [2, 2], [Shard(0), Shard(1)])[3]
    assert torch.equal(column.of(whole), whole[3:, 2:])
    assert torch.equal(column.of(whole[:, :1]), whole[3:, :1])  # numbers for each row are not split by columns
    # tensor parallelism splits first: the second of its halves begins at row 4, and FSDP2 halves each
    eight = torch.arange(8 * 4).view(8, 4)
    split = regions(eight.shape, [2, 2], [_StridedShard(0, split_factor=2), Shard(0)])
    assert [region.rows.start for region in split] == [0, 4, 2, 6]
    assert regions(whole.shape, [2], [Replicate()]) == [Region(slice(0, 5), slice(0, 4))] * 2


def stepped(shard: Any = lambda whole: whole, row_beta2: float = 0.0) -> Tensor:
    """Return the only matrix of a model after two steps of Muon; `shard` is applied to weight and gradients."""
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.Linear(3, 4, bias=False)])
    linear: Any = model.blocks[0]
    draw = torch.Generator().manual_seed(0)
    linear.weight = nn.Parameter(shard(torch.randn(4, 3, generator=draw)))
    optimizer = MuonConfig(learning_rate=0.1, row_beta2=row_beta2).build(model)
    for _ in range(2):
        linear.weight.grad = shard(torch.randn(4, 3, generator=draw))
        optimizer.step()
    return full_tensor(linear.weight)


def _step_on_two(rank: int, store: Path, answers: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("shard",))
    found = [stepped(), stepped(lambda whole: distribute_tensor(whole, mesh, [Shard(0)]))]
    found.append(stepped(lambda whole: distribute_tensor(whole, mesh, [Shard(0)]), 0.9))
    if rank == 1:
        answers.put([matrix.tolist() for matrix in found])
    end_process()


@pytest.mark.slow
@pytest.mark.usefixtures("forked_ranks")
def test_a_process_that_owns_no_matrix_takes_part(tmp_path: Path) -> None:
    """With more processes than matrices, of which each has a copy or a shard, some own none."""
    answers = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(_step_on_two, (tmp_path / "store", answers), nprocs=2)
    for found, alone in zip(answers.get(), [stepped(), stepped(), stepped(row_beta2=0.9)], strict=True):
        torch.testing.assert_close(torch.tensor(found), alone, atol=1e-6, rtol=1e-5)
