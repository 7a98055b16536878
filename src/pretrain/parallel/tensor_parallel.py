"""Tensor parallelism: neighboring devices split every matrix of a Transformer, and the vocabulary.

Source: Shoeybi et al. 2019, https://arxiv.org/abs/1909.08053, section 3; sequence parallelism: Korthikanti et al. 2022,
https://arxiv.org/abs/2205.05198, section 4.2.
"""

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    PrepareModuleOutput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from pretrain.models.transformer import Transformer, VocabularyHead

_BY_POSITION = (
    "attention_norm", "attention_output_norm", "feed_forward_norm", "feed_forward_output_norm", "residual_scale",
    "embedding_scale",
)  # fmt: skip
_HEADS = 1  # axis of queries and keys (B, H, T, D) that is split


def split_matrices(model: Transformer, mesh: DeviceMesh, sequence_parallel: bool) -> None:
    """Split a model in place: attention by heads, feed-forward by hidden width, embedding and head by tokens.

    Hidden states are replicated; with `sequence_parallel` they are split by position between the matrices. The model's
    output is replicated.
    """
    between: Placement = Shard(1) if sequence_parallel else Replicate()
    parallelize_module(
        model.embeddings.tokens, mesh, RowwiseParallel(input_layouts=Replicate(), output_layouts=Replicate())
    )
    for block in model.blocks:
        for name, style in (_attention_plan(between) | _feed_forward_plan(between)).items():
            if any(name == path for path, _ in block.named_modules()):  # only some layers have gates
                parallelize_module(block.get_submodule(name), mesh, style)
        for name in ("query_norm", "key_norm"):
            _style(
                block.get_submodule("attention"),
                name,
                mesh,
                SequenceParallel(sequence_dim=_HEADS, use_local_output=True),
            )
    if sequence_parallel:
        _split_rows(model, mesh)
    for name in ("weight", "bias") if isinstance(model.head, VocabularyHead) else ():  # a label head is small
        full = getattr(model.head, name)
        if full is not None:
            setattr(model.head, name, nn.Parameter(distribute_tensor(full, mesh, [Shard(0)], src_data_rank=None)))
    model.tie()


def _attention_plan(between: Placement) -> dict[str, ParallelStyle]:
    gather = PrepareModuleInput(
        input_layouts=(between, None, None, None, None), desired_input_layouts=(Replicate(), None, None, None, None)
    )
    split = ("query", "key", "value", "gate", "value_gate", "value_embedding")
    plan: dict[str, ParallelStyle] = {f"attention.{name}": ColwiseParallel() for name in split}
    return {"attention": gather, **plan, "attention.output": RowwiseParallel(output_layouts=between)}


def _feed_forward_plan(between: Placement) -> dict[str, ParallelStyle]:
    gather = PrepareModuleInput(input_layouts=(between,), desired_input_layouts=(Replicate(),))
    plan: dict[str, ParallelStyle] = {f"feed_forward.{name}": ColwiseParallel() for name in ("gate", "up")}
    return {"feed_forward": gather, **plan, "feed_forward.down": RowwiseParallel(output_layouts=between)}


def _split_rows(model: Transformer, mesh: DeviceMesh) -> None:
    """Split hidden states by position after the embeddings and gather them after the last norm."""
    split = PrepareModuleOutput(output_layouts=Replicate(), desired_output_layouts=Shard(1))
    parallelize_module(model.embeddings, mesh, split)
    for block in model.blocks:
        for name in _BY_POSITION:
            _style(block, name, mesh, SequenceParallel(use_local_output=True))
    _style(model, "final_norm", mesh, SequenceParallel(use_local_output=True))
    parallelize_module(model, mesh, PrepareModuleOutput(output_layouts=Shard(1), desired_output_layouts=Replicate()))


def _style(parent: nn.Module, name: str, mesh: DeviceMesh, style: ParallelStyle) -> None:
    module = getattr(parent, name)
    if module is not None and not isinstance(module, nn.Identity):
        parallelize_module(module, mesh, style)
