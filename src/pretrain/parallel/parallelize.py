"""Spread a model over devices: a pure function of the model, the mesh and the settings."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from pretrain.kernels.compile import compile_block
from pretrain.kernels.onednn_linear import install, onednn_matmul_ops
from pretrain.models.interface import blocks_of
from pretrain.models.masks import can_use_block_masks
from pretrain.models.transformer import Transformer, VocabularyHead
from pretrain.objectives.objective import ModelWithLoss
from pretrain.parallel.config import ParallelConfig
from pretrain.parallel.mesh import TENSOR, data_mesh
from pretrain.parallel.tensor_parallel import split_matrices

_aten = torch.ops.aten
_KEPT_OPS = {  # selective checkpointing keeps the results of matmuls and attention
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.higher_order.flex_attention,
    *onednn_matmul_ops(),
}

# FSDP2 warns of blocks that return views, as blocks with a split last matrix or norm do; it matters only to code that
# changes a block's output in place, and there is none
warnings.filterwarnings("ignore", ".*FSDP2-wrapped module .* returned a view tensor.*")


def parallelize(
    model_with_loss: ModelWithLoss, mesh: DeviceMesh | None, settings: ParallelConfig, half: torch.dtype | None
) -> None:
    """Parallelize in place: install kernels, split matrices, checkpoint activations, compile, shard over the mesh.

    Without a mesh (of `build_mesh`) only the steps for one device run. A sharded model computes in the 16-bit dtype
    `half`, if there is one, with weights and reduced gradients in float32.
    """
    model, blocks = model_with_loss.model, blocks_of(model_with_loss.model)
    install(model)
    if mesh is not None and mesh[TENSOR].size() > 1:
        assert isinstance(model, Transformer)
        split_matrices(model, mesh[TENSOR], settings.sequence_parallel)
    if settings.activation_checkpointing:
        _checkpoint_activations(blocks, settings)
    if settings.compile:
        _compile(model_with_loss)
    if mesh is not None:
        _shard(model_with_loss, mesh, settings, half)


def _compile(model_with_loss: ModelWithLoss) -> None:
    """Compile each block; on a GPU also the loss, with FlexAttention block masks if the model can use them."""
    model = model_with_loss.model
    for block in blocks_of(model) or [model]:
        compile_block(block)
    model_with_loss.objective.compiled = True
    if isinstance(model, Transformer):
        model.groups_documents = False
        model_with_loss.use_block_masks = can_use_block_masks(model.config)


def _checkpoint_activations(blocks: nn.ModuleList, settings: ParallelConfig) -> None:
    contexts: dict[str, Any] = {}
    if settings.selective_checkpointing:
        contexts["context_fn"] = partial(create_selective_checkpoint_contexts, _selective_policy)
    for index in range(0, len(blocks), settings.checkpoint_every_blocks):
        blocks[index] = checkpoint_wrapper(blocks[index], **contexts)


def _selective_policy(_context: Any, operation: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _KEPT_OPS else CheckpointPolicy.PREFER_RECOMPUTE


def _shard(
    model_with_loss: ModelWithLoss, mesh: DeviceMesh, settings: ParallelConfig, half: torch.dtype | None
) -> None:
    """Shard each block, embedding and head where they are two matrices, and the `ModelWithLoss` as the outermost unit.

    A tied matrix belongs to the outermost unit, which stays gathered during the step, so it is gathered once.
    """
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32) if half else MixedPrecisionPolicy()
    offload = CPUOffloadPolicy() if settings.cpu_offload else OffloadPolicy()
    shard = partial(fully_shard, mesh=data_mesh(mesh), mp_policy=policy, offload_policy=offload)
    model = model_with_loss.model
    modules = blocks_of(model)
    blocks = [
        # the last one stays gathered: its backward pass comes next
        shard(block, reshard_after_forward=settings.reshard_after_forward and number < len(modules))
        for number, block in enumerate(modules, 1)
    ]
    if isinstance(model, Transformer) and isinstance(model.head, VocabularyHead) and not model.config.tie_embeddings:
        _shard_ends(model, partial(shard, mp_policy=replace(policy, cast_forward_inputs=False)), settings)
    shard(model_with_loss)
    register_fsdp_forward_method(model_with_loss, "evaluate")
    if settings.prefetch_blocks:
        _prefetch(blocks, settings.prefetch_blocks)


def _shard_ends(model: Transformer, shard: Callable[..., FSDPModule], settings: ParallelConfig) -> None:
    """Make units of the embedding, whose backward pass reads no weights, and of the head, whose backward pass is next.

    So neither is gathered a second time, and the embedding takes no memory while the blocks compute.
    """
    embedding = shard(model.embeddings.tokens, reshard_after_forward=settings.reshard_after_forward)
    embedding.set_unshard_in_backward(False)
    shard(model.head, reshard_after_forward=False)
    register_fsdp_forward_method(model.head, "compute")


def reshard(model_with_loss: ModelWithLoss) -> None:
    """Free gathered weights; validation leaves those of the outermost unit gathered until the next step."""
    for module in model_with_loss.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _prefetch(blocks: list[FSDPModule], ahead: int) -> None:
    """Gather each block's weights while the `ahead` blocks before it compute, forward and backward."""
    for index, block in enumerate(blocks):
        block.set_modules_to_forward_prefetch(blocks[index + 1 : index + 1 + ahead])
        block.set_modules_to_backward_prefetch(blocks[max(0, index - ahead) : index][::-1])
