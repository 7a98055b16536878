"""Spread a model over devices: a pure function of the model, the mesh and the settings."""

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from pretrain.objectives.objective import Learner
from pretrain.parallel.config import ParallelConfig


def parallelize(learner: Learner, mesh: DeviceMesh | None, settings: ParallelConfig, bf16: bool) -> None:
    """Change the learner in place: checkpoint activations, then compile, then shard over `mesh`, where it is given.

    The learner itself is the outermost unit, so that embedding, head and loss are gathered together, a shared matrix
    once. With `bf16` a sharded model computes in bf16 and keeps weights and reduces gradients in 32 bits.
    """
    blocks = learner.model.blocks
    assert isinstance(blocks, nn.ModuleList)
    if settings.activation_checkpointing:
        for index, block in enumerate(blocks):
            blocks[index] = checkpoint_wrapper(block)
    if settings.compile:
        for block in blocks:
            block.compile(dynamic=False)  # in place: names of parameters stay what they are
    if mesh is None:
        return
    policy = (
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if bf16 else MixedPrecisionPolicy()
    )
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=settings.reshard_after_forward)
    fully_shard(learner, mesh=mesh, mp_policy=policy)
    register_fsdp_forward_method(learner, "evaluate")
