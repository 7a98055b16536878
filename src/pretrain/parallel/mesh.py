"""The processes of a run as a mesh, whose axes say who shares what."""

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from pretrain.parallel.config import ParallelDims

REPLICATE, SHARD, TENSOR = "replicate", "shard", "tensor"  # from the outermost


def build_mesh(parallel_dims: ParallelDims, device_type: str) -> DeviceMesh:
    """Return the mesh (replicas, shards, tensor) of all processes, which make its groups together."""
    shape = (parallel_dims.replicas, parallel_dims.shards, parallel_dims.tensor)
    return init_device_mesh(device_type, shape, mesh_dim_names=(REPLICATE, SHARD, TENSOR))


def data_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """Return the axes over which rows differ: of shards alone, or of copies of them too (HSDP)."""
    return mesh[REPLICATE, SHARD] if mesh[REPLICATE].size() > 1 else mesh[SHARD]
