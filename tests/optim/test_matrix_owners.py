"""Who owns which matrix, and which part of it each process has."""

import torch
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard
from torch.utils.flop_counter import FlopCounterMode

from pretrain.optim.matrix_owners import Region, assign, newton_schulz_flops, regions


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
