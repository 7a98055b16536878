"""What each process holds of tensors that are spread over several, for each to write its own."""

from collections.abc import Mapping

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from pretrain.checkpoint.safetensors_file import TensorShard
from pretrain.parallel.config import ParallelDims
from pretrain.parallel.mesh import TENSOR


def local_shards(
    tensors: Mapping[str, Tensor], rank: int, parallel_dims: ParallelDims
) -> dict[str, Tensor | TensorShard]:
    """Return the part of the tensors that process `rank` is to write: every number falls to exactly one process.

    What all of them hold alike falls to the first; nothing is sent.
    """
    found: dict[str, Tensor | TensorShard] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, DTensor):
            if rank == 0:
                found[name] = tensor.detach()
            continue
        mesh, placements = tensor.device_mesh, tensor.placements
        place = mesh.get_coordinate()
        copy = place is None or any(at and how.is_replicate() for at, how in zip(place, placements, strict=True))
        copy |= TENSOR not in (mesh.mesh_dim_names or ()) and not parallel_dims.is_tp_rank_zero(rank)
        local = tensor.to_local().detach()
        if not copy and local.numel():
            _, offset = compute_local_shape_and_global_offset(tensor.shape, mesh, placements)
            found[name] = TensorShard(local, tensor.shape, offset)
    return found
