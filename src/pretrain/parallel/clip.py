"""The norm and the scale of a whole gradient, however it is spread."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def global_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm, float32 (), of all gradients together; bit for bit the same on every process.

    Gradients of one model may lie on different meshes, whose norms cannot be stacked: each process adds up the squares
    of its shards, divided by how many processes hold the same one, and all sums meet in one reduction.
    """
    shards = [gradient for gradient in gradients if isinstance(gradient, DTensor)]
    if not shards:
        return torch.nn.utils.get_total_norm(gradients, foreach=True)
    world = torch.distributed.get_world_size()
    norms = torch._foreach_norm([shard.to_local() for shard in shards])
    copies = torch.tensor([_copies(shard, world) for shard in shards], dtype=torch.float64, device=norms[0].device)
    squares = (torch.stack(norms).double().square() / copies).sum()
    torch.distributed.all_reduce(squares)
    return squares.sqrt().float()


def _copies(shard: DTensor, world: int) -> int:
    """Return how many processes hold the same part of a tensor."""
    mesh = shard.device_mesh
    within = prod(mesh.size(axis) for axis, how in enumerate(shard.placements) if how.is_replicate())
    return within * world // mesh.size()


def scale_by(gradients: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply gradients in place by `factor` (), which is the same on every process."""
    torch._foreach_mul_([g.to_local() if isinstance(g, DTensor) else g for g in gradients], factor)
