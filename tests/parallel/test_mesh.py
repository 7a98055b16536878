"""The shape of the device mesh, invalid shapes, and initial weights over the mesh."""

from dataclasses import replace
from typing import Any

import families
import pytest
import torch

from pretrain.errors import ConfigError
from pretrain.models.config import ModelConfig
from pretrain.models.init import initial_tensor
from pretrain.parallel.config import ParallelConfig, ParallelDims, build_parallel_dims
from pretrain.parallel.mesh import load_parameters
from pretrain.training.config import Strategy, TrainerConfig

FSDP8 = TrainerConfig(strategy=Strategy.fsdp, devices=4, num_nodes=2)


def test_neighbours_split_matrices_and_read_the_same_rows():
    parallel_dims = build_parallel_dims(ParallelConfig(tensor_parallel=2, replicas=2), FSDP8, families.GPT)
    assert parallel_dims == ParallelDims(ranks=8, replicas=2, tensor=2)
    assert (parallel_dims.shards, parallel_dims.data_ranks) == (2, 4)
    assert [parallel_dims.data_rank(rank) for rank in range(8)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [parallel_dims.is_tp_rank_zero(rank) for rank in range(4)] == [True, False, True, False]


def test_neighbours_split_rows_and_are_shards_of_the_model():
    settings = ParallelConfig(tensor_parallel=2, context_parallel=2)
    parallel_dims = build_parallel_dims(settings, FSDP8, families.GPT)
    assert (parallel_dims.shards, parallel_dims.data_ranks, parallel_dims.gradient_ranks) == (4, 2, 4)
    assert [parallel_dims.data_rank(rank) for rank in range(8)] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert [parallel_dims.gradient_rank(rank) for rank in range(8)] == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sequence_parallel": True}, r"parallel\.tensor_parallel=1 has none\. Try parallel\.tensor_parallel=2\."),
        ({"selective_checkpointing": True}, r"selective_checkpointing=true needs .* Try parallel\.activation_"),
        ({"checkpoint_every_blocks": 2}, r"parallel\.checkpoint_every_blocks=2 needs .* Try parallel\.activation_"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        ParallelConfig(**settings)


@pytest.mark.parametrize(
    ("parallel", "trainer", "model", "message"),
    [
        (ParallelConfig(tensor_parallel=2), replace(FSDP8, strategy=Strategy.ddp), families.GPT,
         r"parallel\.tensor_parallel=2 needs a sharded model, and trainer\.strategy=ddp shards none\. Try trainer="),
        (ParallelConfig(tensor_parallel=4, replicas=4), FSDP8, families.GPT,
         r"tensor_parallel=4 x parallel\.replicas=4 do not divide the 8 devices.* Try trainer\.devices=16\."),
        (ParallelConfig(tensor_parallel=4), FSDP8, families.LLAMA,
         r"tensor_parallel=4 does not divide model\.n_kv_heads=2.* Try parallel\.tensor_parallel=2\."),
        (ParallelConfig(tensor_parallel=2, sequence_parallel=True), FSDP8, replace(families.GPT, context_length=31),
         r"does not divide model\.context_length=31, which the devices split\. Try parallel\.tensor_parallel=1\."),
        (ParallelConfig(tensor_parallel=2), FSDP8, families.OLMO,
         r"model\.qk_norm_across_heads=true normalizes over all of them\. Try parallel\.tensor_parallel=1, with "),
        (ParallelConfig(tensor_parallel=2), FSDP8, ModelConfig(kind="mine"),
         r"matrices of model\.kind=transformer, and model\.kind is mine\. Try parallel\.tensor_parallel=1\."),
        (ParallelConfig(context_parallel=2), replace(FSDP8, strategy=Strategy.single, devices=1, num_nodes=1),
         families.GPT,
         r"context_parallel=2 splits rows over devices, and .*single has one\. Try trainer=fsdp trainer\.devices=2\."),
        (ParallelConfig(context_parallel=3), FSDP8, families.GPT,
         r"replicas=1 x parallel\.context_parallel=3 do not divide the 8 devices.* Try trainer\.devices=3\."),
        (ParallelConfig(context_parallel=2), FSDP8, replace(families.GPT, context_length=31),
         r"4 equal chunks, and model\.context_length=31 is no multiple of 4\. Try model\.context_length=28\."),
        (ParallelConfig(context_parallel=2), FSDP8, ModelConfig(kind="mine"),
         r"rows of model\.kind=transformer, and model\.kind is mine\. Try parallel\.context_parallel=1\."),
        (ParallelConfig(context_parallel=2, tensor_parallel=4, sequence_parallel=True), FSDP8,
         replace(families.GPT, context_length=36),
         r"the 18 positions that parallel\.context_parallel=2 leaves .* Try parallel\.sequence_parallel=false\."),
    ],
)  # fmt: skip
def test_impossible_mesh_shapes_are_refused(parallel, trainer, model, message: str):
    with pytest.raises(ConfigError, match=message):
        build_parallel_dims(parallel, trainer, model)


def test_values_do_not_depend_on_the_callers_device() -> None:
    """Lightning builds models inside `with torch.device(...)` of the GPU: here of a device that can draw nothing."""
    config = families.shape("llama")
    models = [config.build(50, True) for _ in range(2)]
    load_parameters(models[0], lambda name, size: initial_tensor(name, size, config, 0))
    with torch.device("meta"):
        load_parameters(models[1], lambda name, size: initial_tensor(name, size, config, 0))
    for (name, one), other in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other), name
