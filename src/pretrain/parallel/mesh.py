"""The device mesh of a run, and the tensors that are sharded over it."""

import logging
from collections.abc import Callable, Mapping, Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from pretrain.checkpoint.safetensors_file import TensorShard
from pretrain.optim.groups import parameters_by_name
from pretrain.optim.skipped_steps import constants
from pretrain.parallel.config import ParallelDims

REPLICATE, SHARD, TENSOR = "replicate", "shard", "tensor"  # axes of the mesh, outermost first

# a tensor sharded over two axes of a mesh is gathered in two steps, of which torch warns each time
logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)


def build_mesh(parallel_dims: ParallelDims, device_type: str) -> DeviceMesh:
    """Return the mesh (replicas, shards, tensor) of all processes; every process must call this."""
    shape = (parallel_dims.replicas, parallel_dims.shards, parallel_dims.tensor)
    return init_device_mesh(device_type, shape, mesh_dim_names=(REPLICATE, SHARD, TENSOR))


def data_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """Return the axes over which rows differ: shards, and replicas if there are several (HSDP)."""
    return mesh[REPLICATE, SHARD] if mesh[REPLICATE].size() > 1 else mesh[SHARD]


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the full tensor, detached; if it is sharded, every process of its mesh must call this."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def distribute_like(value: Tensor, parameter: Tensor) -> Tensor:
    """Return `value`, a full tensor on every process, with the device and sharding of `parameter`.

    A value with one column for a matrix, such as a number for each row, is whole where columns are split. Nothing is
    sent: each process keeps its shard.
    """
    value = value.to(parameter.device)
    if isinstance(parameter, DTensor):
        placements = [
            Replicate() if place.is_shard() and value.shape[place.dim] != parameter.shape[place.dim] else place  # type: ignore[attr-defined]
            for place in parameter.placements
        ]
        sharded = distribute_tensor(value, parameter.device_mesh, placements, src_data_rank=None)
        return sharded.to(parameter.device)  # back from the mesh's GPU, with parallel.cpu_offload
    return value


@torch.no_grad()
def load_parameters(model: nn.Module, values: Callable[[str, torch.Size], Tensor]) -> None:
    """Set every parameter to `values(name, full shape)`; each process keeps its shard.

    Values are computed on the CPU, whatever the default device: Lightning builds models under that of the GPU, where
    the same seed draws other numbers.
    """
    for name, parameter in parameters_by_name(model).items():
        with torch.device("cpu"):
            value = values(name, parameter.shape)
        parameter.copy_(distribute_like(value, parameter))


def local_shards(
    tensors: Mapping[str, Tensor], rank: int, parallel_dims: ParallelDims
) -> dict[str, Tensor | TensorShard]:
    """Return the shards that process `rank` writes to a checkpoint; exactly one process writes each number.

    Unsharded tensors are written by rank 0. Nothing is sent.
    """
    shards: dict[str, Tensor | TensorShard] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, DTensor):
            if rank == 0:
                shards[name] = tensor.detach()
            continue
        mesh, placements = tensor.device_mesh, tensor.placements
        coordinate = mesh.get_coordinate()
        is_copy = coordinate is None or any(
            index and placement.is_replicate() for index, placement in zip(coordinate, placements, strict=True)
        )
        is_copy |= TENSOR not in (mesh.mesh_dim_names or ()) and not parallel_dims.is_tp_rank_zero(rank)
        local = tensor.to_local().detach()
        if not is_copy and local.numel():
            _, offset = compute_local_shape_and_global_offset(tensor.shape, mesh, placements)
            shards[name] = TensorShard(local, tensor.shape, offset)
    return shards


def global_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of all gradients together, float32 (), bitwise equal on every process.

    Gradients of one model may be on different meshes, whose norms cannot be stacked: each process sums the squares of
    its shards, divided by the number of processes with the same shard, and one all-reduce adds the sums.
    """
    shards = [gradient for gradient in gradients if isinstance(gradient, DTensor)]
    if not shards:
        return torch.nn.utils.get_total_norm(gradients, foreach=True)
    world_size = torch.distributed.get_world_size()
    norms = torch._foreach_norm([shard.to_local() for shard in shards])
    copies = constants(tuple(_copies(shard, world_size) for shard in shards), torch.float64, norms[0].device)
    squares = (torch.stack(norms).double().square() / copies).sum()
    torch.distributed.all_reduce(squares)
    return squares.sqrt().float()


def _copies(shard: DTensor, world_size: int) -> int:
    """Return the number of processes that hold the same shard."""
    mesh = shard.device_mesh
    replicas = prod(mesh.size(axis) for axis, placement in enumerate(shard.placements) if placement.is_replicate())
    return replicas * world_size // mesh.size()


def scale_by(gradients: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply gradients in place by `factor` (), which must be equal on every process."""
    local = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
    torch._foreach_mul_(local, factor.to(local[0].device))  # the CPU, with parallel.cpu_offload
